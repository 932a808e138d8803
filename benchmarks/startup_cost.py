"""What the start-up file adds to every start of Python: processor time with and without it, in turns.

    python benchmarks/startup_cost.py [--starts 25]

Looks at the environment that it runs in, with the package installed there; writes nothing.
"""

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path


def processor_ms(site: Path, folder: Path) -> float:
    """User and system time of one start whose .pth files are those of `folder`, in ms."""
    code = f"import sys; sys.path.append({str(site)!r}); import site; site.addsitedir({str(folder)!r})"
    before = _children()
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
    return 1000 * (_children() - before)


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=25, help="of each kind (default: %(default)s)")
    starts = parser.parse_args().starts
    site = Path(sysconfig.get_paths()["purelib"])
    files = [site / "nnunet_ext.pth", *site.glob("__editable__.nnunet_ext-*.pth")]
    with tempfile.TemporaryDirectory() as folder:
        with_file, without = Path(folder, "with"), Path(folder, "without")
        for path in (with_file, without):
            path.mkdir()
        for path in files:
            if path.is_file():
                shutil.copy(path, with_file)
        times: dict[Path, list[float]] = {with_file: [], without: []}
        for number in range(starts + 1):  # the first of each is a warm-up
            for path in (with_file, without):
                times[path].append(processor_ms(site, path))
                if number == 0:
                    times[path].clear()
        medians = {path: statistics.median(values) for path, values in times.items()}
        print(f"Python {sys.version.split()[0]}, {', '.join(path.name for path in files if path.is_file())}")
        for path, values in times.items():
            print(f"{path.name:8} median {medians[path]:.1f} ms, {min(values):.1f} to {max(values):.1f}")
        print(f"difference of medians {medians[with_file] - medians[without]:+.1f} ms")


if __name__ == "__main__":
    main()
