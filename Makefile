# Builds and installs the program with all that belongs to it.
#
#   make                          build by cargo
#   make install                  install below PREFIX, as root
#   make install DESTDIR=/stage   the same into a directory, for packages
#   make uninstall
#
# What is built already is not built again by `make install`: root needs no cargo.

PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
# Where mount(8) looks for helpers: nowhere else, whatever PREFIX is.
HELPERDIR ?= /sbin
MANDIR ?= $(PREFIX)/share/man
BASHDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHDIR ?= $(PREFIX)/share/zsh/site-functions
FISHDIR ?= $(PREFIX)/share/fish/vendor_completions.d
UNITDIR ?= $(PREFIX)/lib/systemd/system

CARGO ?= cargo
CARGO_TARGET_DIR ?= target
INSTALL ?= install

PROGRAM := $(CARGO_TARGET_DIR)/release/unionfs
FILES := $(CARGO_TARGET_DIR)/install
HELPERS := mount.unionfs mount.fuse.unionfs mount.fuse3.unionfs

.PHONY: all install uninstall

all:
	$(CARGO) build --release --locked --target-dir "$(CARGO_TARGET_DIR)"

$(PROGRAM):
	$(CARGO) build --release --locked --target-dir "$(CARGO_TARGET_DIR)"

install: $(PROGRAM)
	rm -rf "$(FILES)"
	mkdir -p "$(FILES)"
	"$(PROGRAM)" generate "$(FILES)"
	sed 's|@BINDIR@|$(BINDIR)|' dist/unionfs@.service.in >"$(FILES)/unionfs@.service"
	$(INSTALL) -d "$(DESTDIR)$(BINDIR)" "$(DESTDIR)$(HELPERDIR)" "$(DESTDIR)$(MANDIR)/man1" "$(DESTDIR)$(MANDIR)/man8"
	$(INSTALL) -d "$(DESTDIR)$(BASHDIR)" "$(DESTDIR)$(ZSHDIR)" "$(DESTDIR)$(FISHDIR)" "$(DESTDIR)$(UNITDIR)"
	$(INSTALL) -m 755 "$(PROGRAM)" "$(DESTDIR)$(BINDIR)/unionfs"
	for name in $(HELPERS); do ln -sf "$(BINDIR)/unionfs" "$(DESTDIR)$(HELPERDIR)/$$name" || exit 1; done
	$(INSTALL) -m 644 docs/unionfs.1 "$(FILES)"/unionfs-*.1 "$(DESTDIR)$(MANDIR)/man1"
	$(INSTALL) -m 644 "$(FILES)/mount.fuse.unionfs.8" "$(DESTDIR)$(MANDIR)/man8"
	for name in mount.unionfs mount.fuse3.unionfs; do \
		ln -sf mount.fuse.unionfs.8 "$(DESTDIR)$(MANDIR)/man8/$$name.8" || exit 1; done
	$(INSTALL) -m 644 "$(FILES)/unionfs.bash" "$(DESTDIR)$(BASHDIR)/unionfs"
	$(INSTALL) -m 644 "$(FILES)/_unionfs" "$(DESTDIR)$(ZSHDIR)/_unionfs"
	$(INSTALL) -m 644 "$(FILES)/unionfs.fish" "$(DESTDIR)$(FISHDIR)/unionfs.fish"
	$(INSTALL) -m 644 "$(FILES)/unionfs@.service" "$(DESTDIR)$(UNITDIR)/unionfs@.service"

uninstall:
	rm -f "$(DESTDIR)$(BINDIR)/unionfs" "$(DESTDIR)$(UNITDIR)/unionfs@.service"
	for name in $(HELPERS); do \
		rm -f "$(DESTDIR)$(HELPERDIR)/$$name" "$(DESTDIR)$(MANDIR)/man8/$$name.8" || exit 1; done
	rm -f "$(DESTDIR)$(MANDIR)/man1/unionfs.1" "$(DESTDIR)$(MANDIR)"/man1/unionfs-*.1
	rm -f "$(DESTDIR)$(BASHDIR)/unionfs" "$(DESTDIR)$(ZSHDIR)/_unionfs" "$(DESTDIR)$(FISHDIR)/unionfs.fish"
