"""The files of the page at `/`: only those that are there when the server begins."""

from pathlib import Path

from fastapi.responses import Response

PAGE = Path(__file__).parent / "page"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}


def page_files(folder: Path = PAGE) -> dict[str, Path]:
    """Return the files by the paths under which they are served."""
    if not folder.is_dir():
        return {}
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in KINDS and path.is_file():
            files[f"/{path.name}"] = path
            files[f"/page/{path.name}"] = path
    if "/index.html" in files:
        files["/"] = files["/index.html"]
    return files


def file_response(path: Path) -> Response:
    """Return a file as it is now."""
    return Response(path.read_bytes(), media_type=KINDS[path.suffix])
