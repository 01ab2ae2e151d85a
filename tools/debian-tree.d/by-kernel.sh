#!/bin/bash
# From outside, in a mount by the kernel and in a copy alike: changes that leave each kind of mark in the upper.
set -euo pipefail
cd "$1"

rm -r usr/share/doc/git
mkdir usr/share/doc/git
echo only >usr/share/doc/git/only
rm etc/debian_version
echo appended >>etc/issue
chmod 600 etc/issue.net
ln usr/bin/sqlite3 usr/bin/sqlite3.link
mv usr/bin/gcc usr/bin/gcc.moved
# A directory of the lower layers, moved and changed inside: a redirect.
mv usr/share/perl5 srv/perl5
echo new >srv/perl5/new
rm -r srv/perl5/Git
mv srv/clone srv/clone.moved
rm -r srv/compile
