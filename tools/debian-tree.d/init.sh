#!/bin/bash
# Inside the tree: the container's own files are changed in the ways that programs change them. Where each
# change has landed is looked at from outside.
set -euo pipefail
refuse() {
    if "$@"; then
        echo "should have failed: $*" >&2
        exit 1
    fi
}

# By a new file renamed over the old one, as editors do.
sed -i 's/^127\.0\.0\.1.*/& edited-by-sed/' /etc/hosts
grep -q edited-by-sed /etc/hosts
# In place.
echo '# appended' >>/etc/resolv.conf
chmod 640 /etc/resolv.conf
# Truncated and written anew.
echo renamed-host >/etc/hostname
test "$(cat /etc/hostname)" = renamed-host
# Deleted; the version in the layers below must not come to light.
rm /etc/motd
test ! -e /etc/motd
refuse grep -qx motd <(ls /etc)
# New.
echo new >/etc/new-name
test -z "$(find /etc -name 'sed*' -newer /etc/hosts)"
