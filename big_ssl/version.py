"""Which version of big_ssl wrote a folder: a run's working directory, or converted weights."""

from big_ssl import __version__, io

FILE = "version.txt"
# Versions up to this one did not write the file.
_WITHOUT_FILE = "0.1.0"


def write(folder) -> None:
    """Writes this version into the folder."""
    io.write_atomically(io.as_path(folder) / FILE, f"{__version__}\n".encode())


def written_by(folder) -> str:
    """The version that wrote the folder."""
    path = io.as_path(folder) / FILE
    return path.read_bytes().decode(errors="replace").strip() if path.exists() else _WITHOUT_FILE
