# Runs in a container, by its shell: one line for each object of the tree.
cd /
find . -xdev ! -path './proc*' ! -path './sys*' ! -path './dev*' ! -path './run*' ! -path './etc/hosts' \
    ! -path './etc/resolv.conf' ! -path './etc/hostname' ! -path './etc/mtab' ! -path . | sort | while read -r name; do
    if [ -h "$name" ]; then
        echo "$name -> $(readlink "$name")"
    elif [ -f "$name" ]; then
        echo "$name $(stat -c '%a %u:%g %h %s' "$name") $(md5sum <"$name")"
    else
        echo "$name $(stat -c '%F %a %u:%g' "$name")"
    fi
done
