# Sourced by scripts/byol and scripts/test with `root` set: sees to the prerequisites and exports LIBTORCH.
# libtorch 2.11.0 comes from PyPI into $root/.libtorch, once. A LIBTORCH set by the user is respected.

torch_version=2.11.0
nccl_version=2.28.9 # which that is built with

need() { # need COMMAND WHAT-TO-DO
  command -v "$1" >/dev/null 2>&1 && return
  echo "byol: $1 is missing. $2" >&2
  exit 1
}

install_libtorch() {
  local venv="$root/.libtorch/venv" packages variant=$1
  # What the build needs of CUDA beside the libraries: headers, 3 MB.
  local headers="nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85"
  need python3 "Install it with: sudo apt-get install python3 python3-venv"
  if [ "$variant" = cuda ]; then
    packages="torch==$torch_version $headers"
    echo "byol: installing libtorch $torch_version with CUDA from PyPI into .libtorch (about 4.7 GB, once)" >&2
  else
    # Of CUDA only what the libraries link to: enough to run on the CPU, a quarter of the size.
    packages="--no-deps torch==$torch_version nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85 $headers"
    echo "byol: installing libtorch $torch_version for the CPU from PyPI into .libtorch (about 1.3 GB, once)" >&2
  fi
  rm -rf "$root/.libtorch/venv"
  if ! python3 -m venv "$venv" >&2; then
    echo "byol: python3 cannot make a virtual environment. Install it with: sudo apt-get install python3-venv" >&2
    exit 1
  fi
  # shellcheck disable=SC2086 # a list of words
  if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check $packages >&2; then
    echo "byol: pip could not install torch $torch_version (its words are above). It needs Python 3.10 to 3.14 on x86-64 Linux and 5 GB of disk with CUDA, 1.5 GB without." >&2
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
    "$root/.libtorch/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
      "nvidia-nccl-cu13==$nccl_version" >&2
  ) 9>"$root/.libtorch/lock"
}

find_compilers() {
  need cargo "Install Rust with: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
  local tool
  for tool in g++ make cmake nasm; do # the last three build libjpeg-turbo
    need "$tool" "Install it with: sudo apt-get install $tool"
  done
}
