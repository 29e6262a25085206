#!/usr/bin/env bash
# Installs what is missing and says what it does; a second run finds everything and does nothing.
#   scripts/setup.sh run    what `make run` and `make build` need
#   scripts/setup.sh test   the same and what the tests need
#   scripts/setup.sh fuzz   what `make run` needs, and cargo-fuzz
. "$(dirname "$0")/lib.sh"
WHAT=${1:-run}

# ---- Debian packages -------------------------------------------------------------------------------------------
MISSING=()
need() { # need PACKAGE TEST...: the package, unless the test succeeds
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || MISSING+=("$package")
}
has() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1"; }
installed() { [[ $(dpkg-query -W -f '${Status}' "$1" 2>/dev/null) == 'install ok installed' ]]; }
has_postgres() { compgen -G '/usr/lib/postgresql/*/bin/initdb'; }

install_packages() {
  [ ${#MISSING[@]} -gt 0 ] || return 0
  has apt-get >/dev/null || die "missing: ${MISSING[*]} (this is not Debian: install them by hand)"
  can_root || die "missing Debian packages: ${MISSING[*]} (run as root: apt-get install ${MISSING[*]})"
  say "installing Debian packages: ${MISSING[*]}"
  # Nothing that is installed here is to be started as a service of the machine.
  local policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
    as_root chmod 755 $policy
    trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  as_root apt-get -o DPkg::Lock::Timeout=300 update -qq
  as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=300 install -y -q --no-install-recommends "${MISSING[@]}"
  MISSING=()
}

need make has make
need gcc has gcc
need libc6-dev test -e /usr/include/stdlib.h
need pkg-config has pkg-config
need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
need postgresql has_postgres
need iproute2 has ip
has node >/dev/null || MISSING+=(nodejs npm)
if [ "$WHAT" = test ]; then
  need iproute2 has lnstat
  need nftables has nft
  need iptables has iptables-nft
  need containerd has containerd
  need runc has runc
  need containernetworking-plugins test -x /usr/lib/cni/bridge
  need iputils-ping has ping
  need procps has sysctl
  need prometheus has promtool
  need chromium has chromium
  need postgresql-client has psql
  need util-linux has setpriv
  need qemu-system-x86 has qemu-system-x86_64
  need xz-utils has xz
  need binutils has strip
  need python3-venv python3 -c 'import ensurepip, venv'
fi
if [ "$WHAT" = fuzz ]; then need g++ has g++; fi
install_packages

# ---- Rust ------------------------------------------------------------------------------------------------------
as_builder sh -c 'command -v cargo' >/dev/null || die "no cargo for user $BUILDER: install Rust 1.95 or newer (https://rustup.rs), then run this again"
RUSTC_VERSION=$(as_builder rustc -vV | sed -n 's/^release: //p')
LLVM_MAJOR=$(as_builder rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
printf '1.95.0\n%s\n' "${RUSTC_VERSION%%-*}" | sort -VC || die "rustc is $RUSTC_VERSION, 1.95 or newer is needed"
NODE_MAJOR=$(node --version | sed 's/^v\([0-9]*\).*/\1/')
[ "$NODE_MAJOR" -ge 20 ] || die "node is $(node --version), 20 or newer is needed for the web pages"

# ---- Source of `core`, from which the kernel side is built ------------------------------------------------------
SYSROOT=$(as_builder rustc --print sysroot)
LIBRARY=$SYSROOT/lib/rustlib/src/rust/library
rust_src_from_debian() {
  # Debian's package of exactly the compiler's version; it is in trixie-backports. A private apt root leaves the
  # machine's own sources as they are.
  local dir mirror
  dir=$(mktemp -d)
  mirror=$({ grep -rhoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null || true; } | head -n 1 | tr -d ' ')
  [ -n "$mirror" ] || die "no Debian mirror in /etc/apt: add the Rust source of version $RUSTC_VERSION to $LIBRARY by hand"
  mkdir -p "$dir"/{lists/partial,cache/archives/partial,out}
  printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$mirror" trixie "$mirror" trixie-backports >"$dir/sources.list"
  cat >"$dir/apt.conf" <<CONF
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$dir/lists";
Dir::Cache "$dir/cache";
Acquire::Languages "none";
APT::Sandbox::User "root";
CONF
  APT_CONFIG=$dir/apt.conf as_root env APT_CONFIG="$dir/apt.conf" apt-get update -qq
  local version
  version=$(APT_CONFIG=$dir/apt.conf apt-cache madison rust-src | awk '{print $3}' | grep -E "^${RUSTC_VERSION//./\\.}[+-]" | head -n 1)
  [ -n "$version" ] || die "Debian has no rust-src of version $RUSTC_VERSION: add the Rust source to $LIBRARY by hand"
  (cd "$dir/out" && as_root env APT_CONFIG="$dir/apt.conf" apt-get download -q "rust-src=$version")
  as_root dpkg -x "$dir"/out/rust-src_*.deb "$dir/out"
  local found
  # The package also holds stubs of the library, for tests of the tools.
  found=$(find "$dir/out" -path '*/library/core/src/any.rs' | sed 's#/src/any.rs$##' | head -n 1)
  [ -n "$found" ] || die "the package rust-src $version holds no library/core"
  local install=(as_builder)
  [ -w "$SYSROOT" ] || install=(as_root)
  "${install[@]}" mkdir -p "$(dirname "$LIBRARY")"
  "${install[@]}" cp -r "$(dirname "$found")" "$LIBRARY"
  as_root rm -rf "$dir"
}
if [ ! -d "$LIBRARY/core" ]; then
  say "installing the source of Rust's core library, version $RUSTC_VERSION"
  if [ "${SONDE_RUST_SRC:-rustup}" = rustup ] && as_builder sh -c 'command -v rustup' >/dev/null && as_builder rustup component add rust-src; then
    :
  else
    rust_src_from_debian
  fi
  [ -d "$LIBRARY/core" ] || die "no Rust source in $LIBRARY after the installation"
fi

# ---- bpf-linker, against the LLVM of this rustc ------------------------------------------------------------------
LINKER_VERSION=0.13.0
linker_fits() {
  local linker
  linker=$(as_builder sh -c 'command -v bpf-linker') || return 1
  [[ $("$linker" --version) == *" $LINKER_VERSION"* && $(ldd "$linker") =~ libLLVM(-|\.so\.)$LLVM_MAJOR ]]
}
if ! linker_fits; then
  need "llvm-$LLVM_MAJOR-dev" installed "llvm-$LLVM_MAJOR-dev"
  need libzstd-dev installed libzstd-dev
  need zlib1g-dev installed zlib1g-dev
  need libxml2-dev installed libxml2-dev
  need g++ has g++
  install_packages
  say "building bpf-linker $LINKER_VERSION for LLVM $LLVM_MAJOR (about a minute)"
  as_builder env LLVM_PREFIX="/usr/lib/llvm-$LLVM_MAJOR" \
    cargo install bpf-linker --version "=$LINKER_VERSION" --locked --force --no-default-features --features "llvm-$LLVM_MAJOR"
fi

# ---- cargo-fuzz --------------------------------------------------------------------------------------------------
FUZZ_VERSION=0.13.1
if [ "$WHAT" = fuzz ] && ! as_builder cargo fuzz --version 2>/dev/null | grep -qxF "cargo-fuzz $FUZZ_VERSION"; then
  say "building cargo-fuzz $FUZZ_VERSION"
  as_builder cargo install cargo-fuzz --version "=$FUZZ_VERSION" --locked --force
fi

# ---- Web packages: exactly what the lock files say ----------------------------------------------------------------
web_packages() {
  local dir=$1
  [ -f "$dir/package-lock.json" ] || return 0
  if ! cmp -s "$dir/package-lock.json" "$dir/node_modules/.sonde-lock"; then
    say "installing web packages of $dir"
    as_builder sh -c "cd '$dir' && npm ci --no-audit --no-fund && cp package-lock.json node_modules/.sonde-lock"
  fi
}
web_packages aggregator/ui
if [ "$WHAT" = test ]; then
  web_packages tests/browser
  web_packages tests/openapi
fi

# ---- Python packages: exactly what the requirements say, hashes included, in a place of their own ------------------
python_packages() {
  local dir=$1
  if ! cmp -s "$dir/requirements.txt" "$dir/.venv/.sonde-requirements"; then
    say "installing Python packages of $dir"
    as_builder sh -c "cd '$dir' && rm -rf .venv && python3 -m venv .venv \
      && .venv/bin/pip install -q --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.txt \
      && cp requirements.txt .venv/.sonde-requirements"
  fi
}
if [ "$WHAT" = test ]; then python_packages tests/openapi; fi
say "everything for \`make $WHAT\` is here"
