#!/bin/bash
# Inside the tree: a small program of many files is compiled in parallel, linked and run.
set -euo pipefail
refuse() {
    if "$@"; then
        echo "should have failed: $*" >&2
        exit 1
    fi
}
units=$1

mkdir /srv/compile
cd /srv/compile
for ((i = 0; i < units; i++)); do
    cat >"unit$i.c" <<END
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
long unit$i(long x) { char b[32]; snprintf(b, sizeof b, "%ld", x + $i); return strtol(b, NULL, 10) - x; }
END
    echo "long unit$i(long);" >>units.h
    echo "    sum += unit$i(sum);" >>calls.h
done
cat >main.c <<'END'
#include <stdio.h>
#include "units.h"
int main(void) {
    long sum = 0;
#include "calls.h"
    printf("%ld\n", sum);
    return 0;
}
END
cat >Makefile <<'END'
OBJECTS := $(patsubst %.c,%.o,$(wildcard *.c))
program: $(OBJECTS)
	gcc -o $@ $^ -lm
%.o: %.c
	gcc -O1 -g -c -o $@ $<
main.o: units.h calls.h
END
make -s -j2
test "$(./program)" -eq $((units * (units - 1) / 2))
# Nothing is left to do: the times of what was made are right.
make -q
touch units.h
refuse make -q
make -s -j2
./program
