"""What a file's extension says: its type, and how its document is cut unless told otherwise (contract, 4.1)."""

import mimetypes

EXTENSIONS = {
    "pdf": "pdf",
    "doc": (
        "msg eml doc docx ppt pptx yml xml htm html json jsonl ldjson csv txt ini xls xlsx wps rtf hlp pages numbers key md mdx "
        "py js java c cpp h php go ts sh cs kt sql epub"
    ),
    "aural": "wav flac ape alac wavpack wv mp3 aac ogg vorbis opus",
    "visual": (
        "jpg jpeg png tif gif bmp pcx tga exif fpx svg psd cdr pcd dxf ufo eps ai raw webp avif apng icon ico "
        "mpg mpeg avi rm rmvb mov wmv asf dat asx wvx mpe mpa mp4 mkv"
    ),
}
TYPE_OF = {extension: kind for kind, extensions in EXTENSIONS.items() for extension in extensions.split()}
METHOD_OF_TYPE = {"visual": "picture", "aural": "audio"}
METHOD_OF_EXTENSION = {"ppt": "presentation", "pptx": "presentation", "pages": "presentation", "msg": "email", "eml": "email"}
MEDIA_TYPES = {"md": "text/markdown", "mdx": "text/markdown", "jsonl": "application/jsonl", "epub": "application/epub+zip"}


def extension_of(name: str) -> str:
    """What follows the last dot, in lower case; "" without a dot."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def forced_method(name: str) -> str | None:
    """The chunk method that the file's kind demands, None where the dataset's is fine."""
    extension = extension_of(name)
    return METHOD_OF_EXTENSION.get(extension) or METHOD_OF_TYPE.get(TYPE_OF.get(extension, ""))


def media_type(name: str) -> str:
    """The media type to serve the file as."""
    extension = extension_of(name)
    return MEDIA_TYPES.get(extension) or mimetypes.guess_type(f"file.{extension}")[0] or "application/octet-stream"
