#!/bin/bash
# Inside the tree: changes to what the lower layers hold, of each kind that has a form of its own in the upper.
set -euo pipefail

cd /usr/share
chmod 4750 common-licenses/BSD
chown 1234:5678 common-licenses/Artistic
touch -d '2001-02-03 04:05:06.123456789 UTC' common-licenses/GPL-1
ln common-licenses/GPL-3 common-licenses/GPL-3.link
test common-licenses/GPL-3 -ef common-licenses/GPL-3.link
mv common-licenses/LGPL-3 common-licenses/LGPL-3.moved
mv common-licenses/CC0-1.0 /srv/
rm common-licenses/MPL-1.1
mkdir common-licenses/MPL-1.1
: >common-licenses/MPL-2.0
ln -sfn nowhere common-licenses/GPL
truncate -s 20M common-licenses/GFDL-1.3
printf x | dd of=common-licenses/GFDL-1.2 bs=1 seek=5M conv=notrunc status=none
mkfifo /srv/fifo
mknod /srv/null c 1 3
ln -s /nowhere /srv/dangling
# A directory that replaces a lower one; a directory of a lower that moves; one that empties.
rm -r doc/gcc*
mkdir doc/gcc
echo opaque >doc/gcc/only
test "$(ls -A doc/gcc)" = only
mv perl5 perl5.moved
test -d perl5.moved
test ! -e perl5
mv perl5.moved perl5
rm -r bug
# A tree goes and comes again with other content under the same names.
cp -a common-licenses /srv/copy
rm -r common-licenses
cp -a /srv/copy common-licenses
setfattr -n user.comment -v 'a comment' common-licenses/GPL-2 2>/dev/null ||
    python3 -c 'import os; os.setxattr("common-licenses/GPL-2", "user.comment", b"a comment")'
# One name of a hardlink of a lower layer changes: so does the other.
cd /usr/bin
test perlbug -ef perlthanks
echo '# appended' >>perlbug
chmod 700 perlthanks
test perlbug -ef perlthanks
cmp perlbug perlthanks
test "$(stat -c '%a %h' perlbug)" = '700 2'
test "$(tail -n 1 perlthanks)" = '# appended'
