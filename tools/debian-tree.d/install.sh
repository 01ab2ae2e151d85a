#!/bin/bash
# Inside the tree: a package of many files comes, a package of the layers below goes.
set -euo pipefail
refuse() {
    if "$@"; then
        echo "should have failed: $*" >&2
        exit 1
    fi
}
package=$1

apt-get -q update
apt-get -qy install "$package"
mapfile -t installed < <(dpkg-query -W -f '${db:Status-Status} ${Package}\n' | sed -n 's/^installed //p')
files=$(dpkg -L "${installed[@]}" | sort -u | wc -l)

# A file of a lower layer must be gone for every way of looking, and its name free again.
apt-get -qy purge make
test ! -e /usr/bin/make
refuse grep -qx make <(ls /usr/bin)
refuse grep -q . <(find /usr/bin -name make)
apt-get -qy install make
make --version

# Every file of every package against the checksum that came with it.
verified=$(dpkg --verify || true)
echo "$verified"
test -z "$verified"
echo "${#installed[@]} packages, $files files"
