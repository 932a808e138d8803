#!/bin/bash
# Makes a folder for `benchmarks/gpu.py` on a machine that has torch and the usual scientific packages (Python 3.12,
# x86-64), but neither nnU-Net nor a network:
#
#     bash benchmarks/gpu_carry.sh FOLDER RAW_DATASET        # here, where packages can be downloaded; in the repository
#     source FOLDER/setup.sh && python benchmarks/gpu.py     # there
#
# FOLDER holds wheels of nnU-Net, of what it needs and of this package, SimpleITK with its library compressed (a tenth of
# its size), and the data set of nnUNet_raw. Below 64 MiB with the Decathlon's hippocampi.
set -euo pipefail
folder=$1 dataset=$(realpath "$2")
rm -rf "$folder"
mkdir -p "$folder/wheels" "$folder/sitk"
folder=$(realpath "$folder")
platforms=()
for release in 2_28 2_27 2_24 2_17 2014 1; do platforms+=(--platform "manylinux${release/#2_/_2_}_x86_64"); done
download() {
    python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        "${platforms[@]}" -d "$1" "${@:2}"
}
download "$folder/wheels" "nnunetv2>=2.8.1,<2.9" batchgenerators batchgeneratorsv2 dynamic-network-architectures \
    nibabel 'blosc2>=3,<4' ndindex numexpr msgpack py-cpuinfo platformdirs \
    connected-components-3d fft-conv-pytorch graphviz yacs  # blosc2 4 is larger and imports httpx
download "$folder/sitk" SimpleITK
python3 -m pip wheel -q --no-deps -w "$folder/wheels" acvl-utils .
(
    cd "$folder/sitk"
    python3 -m zipfile -e ./*.whl .
    rm ./*.whl
    xz -T0 -6 SimpleITK/_SimpleITK*.so
)
cp -r "$dataset" "$folder/"
rm -rf "$folder"/Dataset*/imagesTs  # nothing is predicted
cat > "$folder/setup.sh" <<'SETUP'
# To be sourced: installs without a network, sets nnU-Net's folders below the one that is given or /tmp, plans and
# preprocesses.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=${1:-/tmp/nnunet_ext_gpu}
python3 -m pip install -q --no-index --no-deps --no-compile "$here"/wheels/*.whl
site=$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
cp -r "$here"/sitk/* "$site"/ && xz -f -T0 -d "$site"/SimpleITK/_SimpleITK*.so.xz
export nnUNet_raw=$root/raw nnUNet_preprocessed=$root/preprocessed nnUNet_results=$root/results
mkdir -p "$nnUNet_raw" "$nnUNet_preprocessed" "$nnUNet_results"
cp -r "$here"/Dataset* "$nnUNet_raw"/
number=$(basename "$here"/Dataset*); number=${number:7:3}
nnUNetv2_plan_and_preprocess -d "$((10#$number))" -c 3d_fullres -np 8 -npfp 8
SETUP
echo "$(du -sm --apparent-size "$folder" | cut -f1) MiB in $folder"
