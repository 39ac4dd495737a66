# Sourced by scripts/byol and scripts/test with `root` set: sees to the prerequisites and exports LIBTORCH.
# libtorch 2.11.0 comes from PyPI into $root/.libtorch, once. A LIBTORCH set by the user is respected.

torch_version=2.11.0
nccl_version=2.28.9 # which that is built with

# Tools show their own progress on a terminal, and nothing but errors elsewhere.
quiet=--quiet
[ ! -t 2 ] || quiet=

# Runs a command that may take minutes; where it is quiet, a line a minute says that it still runs.
minute=60 # seconds; a test has no time for more
patiently() {
  if [ -z "$quiet" ]; then
    "$@"
    return
  fi
  local sleep="" status=0
  (
    # Neither this nor its sleep outlives the command or holds a lock or a pipe of it.
    trap 'kill $sleep 2>/dev/null; exit' TERM
    for ((minutes = 1; ; minutes++)); do
      sleep "$minute" >/dev/null 2>&1 &
      sleep=$!
      wait "$sleep"
      kill -0 $$ 2>/dev/null || exit
      echo "byol: still at work after $minutes min" >&2
    done
  ) 9>&- &
  local clock=$!
  "$@" || status=$?
  kill "$clock"
  wait "$clock" 2>/dev/null || true
  return $status
}

# The system's packages that are missing, as the words of apt, dnf and pacman; nothing is installed piecemeal.
missing_packages() {
  local apt="" dnf="" pacman=""
  add() { apt+=" $1" dnf+=" $2" pacman+=" $3"; }
  command -v g++ >/dev/null || add g++ gcc-c++ gcc
  command -v nasm >/dev/null || add nasm nasm nasm
  command -v curl >/dev/null || command -v cargo >/dev/null || add "curl ca-certificates" curl curl
  if { [ -z "${LIBTORCH:-}" ] || ! command -v cmake >/dev/null; } && ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    add "python3 python3-venv" python3 python
  fi
  printf '%s|%s|%s' "${apt# }" "${dnf# }" "${pacman# }"
}

# Sees to the compilers. As root on Debian or Ubuntu (a container, CI) what is missing is installed; else all of it is
# named at once, with the command that installs it.
find_compilers() {
  local apt dnf pacman
  IFS='|' read -r apt dnf pacman <<<"$(missing_packages)"
  if [ -n "$apt" ] && [ "$(id -u)" = 0 ] && [ -e /etc/debian_version ]; then
    echo "byol: installing $apt (apt-get)" >&2
    # shellcheck disable=SC2086 # a list of words
    if apt-get update -qq >/dev/null &&
      DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends $apt >/dev/null; then
      apt=""
    fi
  fi
  if [ -n "$apt" ]; then
    {
      echo "byol: these are missing: $apt. Install them with one of:"
      echo "  sudo apt-get install $apt"
      echo "  sudo dnf install $dnf"
      echo "  sudo pacman -S $pacman"
    } >&2
  fi
  if ! command -v cargo >/dev/null; then
    echo "byol: Rust is missing. Install it with: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh" >&2
    exit 1
  fi
  [ -z "$apt" ] || exit 1
}

# cmake and ninja build libjpeg-turbo: the system's, or those of PyPI, in a private environment.
find_cmake() {
  if command -v cmake >/dev/null && { command -v make >/dev/null || command -v ninja >/dev/null; }; then return; fi
  local tools="$root/.libtorch/tools"
  if [ ! -e "$tools/ready" ]; then
    mkdir -p "$root/.libtorch"
    (
      flock 9
      [ -e "$tools/ready" ] && exit
      echo "byol: installing cmake and ninja from PyPI into .libtorch (110 MB, once)" >&2
      rm -rf "$tools"
      python3 -m venv "$tools/venv" >&2 &&
        patiently "$tools/venv/bin/python" -m pip install $quiet --disable-pip-version-check cmake==4.4.5 ninja==1.13.2 >&2 &&
        mkdir "$tools/bin" && ln -s ../venv/bin/cmake ../venv/bin/ninja "$tools/bin/" && touch "$tools/ready"
    ) 9>"$root/.libtorch/lock" || exit 1
  fi
  # Their own folder: the environment's Python is not to be the build's.
  PATH="$tools/bin:$PATH"
  export PATH CMAKE_GENERATOR=Ninja
}

install_libtorch() {
  local venv="$root/.libtorch/venv" packages variant=$1
  # What the build needs of CUDA beside the libraries: headers, 3 MB.
  local headers="nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85"
  if [ "$variant" = cuda ]; then
    packages="torch==$torch_version $headers"
    echo "byol: installing libtorch $torch_version with CUDA from PyPI into .libtorch (about 4.7 GB, once)" >&2
  else
    # Of CUDA only what the libraries link to: enough to run on the CPU, a quarter of the size.
    packages="--no-deps torch==$torch_version nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85 $headers"
    echo "byol: installing libtorch $torch_version for the CPU from PyPI into .libtorch (about 1.3 GB, once)" >&2
  fi
  rm -rf "$root/.libtorch/venv"
  python3 -m venv "$venv" >&2 || exit 1
  # shellcheck disable=SC2086 # lists of words
  if ! patiently "$venv/bin/python" -m pip install $quiet --disable-pip-version-check $packages >&2; then
    echo "byol: pip could not install torch $torch_version (its message is above). It needs Python 3.10 to 3.14 on x86-64 Linux and 5 GB of disk with CUDA, 1.5 GB without." >&2
    exit 1
  fi
  "$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$root/.libtorch/site"
  echo "$variant $torch_version 2" >"$root/.libtorch/ready" # last: a killed install is done again
}

find_libtorch() {
  if [ -n "${LIBTORCH:-}" ]; then
    [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] && return
    echo "byol: LIBTORCH=$LIBTORCH holds no lib/libtorch_cpu.so. Unset it, or point it at libtorch $torch_version." >&2
    exit 1
  fi
  local variant=cpu
  if [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null; then variant=cuda; fi
  if [ "$(cat "$root/.libtorch/ready" 2>/dev/null)" != "$variant $torch_version 2" ]; then
    mkdir -p "$root/.libtorch"
    (
      flock 9 # a second start waits for the first one's install
      [ "$(cat "$root/.libtorch/ready" 2>/dev/null)" = "$variant $torch_version 2" ] || install_libtorch "$variant"
    ) 9>"$root/.libtorch/lock" || exit 1
  fi
  LIBTORCH="$(cat "$root/.libtorch/site")/torch"
  export LIBTORCH
}

# What is compiled with NCCL's header is compiled by scripts/test on every machine. With CUDA it is there; for the CPU
# alone nobody needs its 200 MB. A LIBTORCH set by the user is respected.
find_nccl() {
  local site="${LIBTORCH%/torch}"
  local installed="$site/nvidia_nccl_cu13-$nccl_version.dist-info/RECORD" # pip writes it last
  if [ -e "$installed" ] || [ "$site" != "$(cat "$root/.libtorch/site" 2>/dev/null)" ]; then return; fi
  (
    flock 9
    [ -e "$installed" ] && exit
    echo "byol: installing NCCL $nccl_version from PyPI into .libtorch (200 MB, once)" >&2
    patiently "$root/.libtorch/venv/bin/python" -m pip install $quiet --disable-pip-version-check --no-deps \
      "nvidia-nccl-cu13==$nccl_version" >&2
  ) 9>"$root/.libtorch/lock"
}

# The commit that is built, with -changed if the sources are; `unknown` without git, or within another repository.
find_commit() {
  if [ "$(git -C "$root" rev-parse --show-prefix 2>/dev/null)x" = x ] && BYOL_COMMIT=$(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null); then
    [ -z "$(git -C "$root" status --porcelain -- src Cargo.toml Cargo.lock)" ] || BYOL_COMMIT+=-changed
  fi
  export BYOL_COMMIT="${BYOL_COMMIT:-unknown}"
}
