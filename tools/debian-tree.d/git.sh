#!/bin/bash
# Inside the tree: /srv/source.git is cloned, checked, walked through its history and packed again.
set -euo pipefail

export GIT_CONFIG_GLOBAL=/dev/null GIT_ADVICE=0
cd /srv
clean() {
    test -z "$(git status --porcelain)"
}

git config --system --add safe.directory '*'
git clone -q source.git clone
cd clone
clean
commits=$(git rev-list --count HEAD)
files=$(git ls-files | wc -l)
test "$commits" -gt 10
test "$files" -gt 1000

git checkout -q "HEAD~$((commits / 2))"
clean
git checkout -q -
clean
git fsck --no-dangling --no-progress

# A change is seen, a rename is known as one, a commit makes it clean again.
first=$(git ls-files | sed -n 1p)
echo changed >>"$first"
test "$(git status --porcelain)" = " M $first"
git mv "$first" moved
test "$(git status --porcelain | wc -l)" -eq 1
git -c user.name=test -c user.email=test@localhost commit -qam 'Move a file'
clean
git reset -q --hard HEAD~1
clean
git clean -fdxq
git gc -q
git fsck --no-dangling --no-progress
clean

# Over a transport, not by links.
git clone -q --no-local --depth 3 "file:///srv/source.git" ../shallow
cd ../shallow
clean
echo "$commits commits, $files files"
