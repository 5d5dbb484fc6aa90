"""What to do about a file that was refused, by its reason."""

from collections.abc import Mapping

_CONVERT = "Save it in one of the formats that are read, and ingest it again."
_REPAIR = "Open it in the program that made it, save it anew, and ingest it again."
_UNLOCK = "Save a copy without its password, and ingest that."
_SPLIT = "Split it into smaller files, and ingest these."
_RAISE = "Split it into smaller files, or have an administrator raise `{}`."
_DIVIDE = "Divide it into several archives, or unpack it, and ingest what was in it."
_SUSPECT = (
    "A file made to attack its reader ends so, too: do not open it elsewhere unless you know who made it, and have it"
    " sent in another form."
)
_AGAIN = "Ingest it again when nothing writes to it any more."
_COPY = "Copy the file itself into the source, not a link to it."
_DISTRUST = "Do not open it elsewhere; ask who made the stick, and purge it."
_NOTHING = "Nothing to do."
_REPAIR_STICK = "Have a computer check the stick for faults, or format it, and copy the files onto it again."
_RENAME = "Rename it on the stick, and ingest it again."

REMEDIES: Mapping[str, str] = {
    "UNKNOWN_TYPE": _CONVERT,
    "TYPE_MISMATCH": "Give it the ending of what it is; if its sender named it so, do not trust it.",
    "NOT_UTF8": "Save it as UTF-8, and ingest it again.",
    "NOT_UNICODE": _REPAIR,
    "NOT_TEXT": "Give it the ending of what it is; if it is text, save it as UTF-8, and ingest it again.",
    "POLYGLOT": _DISTRUST,
    "EMPTY": _NOTHING,
    "NO_TEXT": "If it is a scan, have its language among those that are recognised; else nothing to do.",
    "OCR_UNAVAILABLE": "Have an administrator install libtesseract5 and its languages, or set `ocr_languages`.",
    "OCR_TOO_SLOW": "Scan it with fewer dots an inch, or save its text, and ingest it again.",
    "PDF_BROKEN": _REPAIR,
    "DOCUMENT_BROKEN": _REPAIR,
    "IMAGE_BROKEN": _REPAIR,
    "ARCHIVE_BROKEN": "Pack it anew, and ingest it again.",
    "PDF_ENCRYPTED": _UNLOCK,
    "DOCUMENT_ENCRYPTED": _UNLOCK,
    "ARCHIVE_ENCRYPTED": _UNLOCK,
    "TOO_LARGE": _RAISE.format("document_max_mib"),
    "TOO_MANY_PAGES": _RAISE.format("document_max_pages"),
    "TOO_MANY_MEMBERS": _DIVIDE,
    "TOO_MANY_CELLS": _RAISE.format("sheet_max_cells"),
    "MAIL_HEADERS": _DISTRUST,
    "TOO_MUCH_TEXT": _SPLIT,
    "ARCHIVE_TOO_LARGE": _DIVIDE,
    "IMAGE_TOO_LARGE": "Scan it with fewer dots an inch, or have an administrator raise `image_max_megapixels`.",
    "TOO_DEEP": "Unpack the inner archives, and ingest what is in them.",
    "ZIP_BOMB": _DISTRUST,
    "HTML_TOO_DEEP": _CONVERT,
    "XML_DTD": _DISTRUST,
    "FORBIDDEN_CALL": _DISTRUST,
    "MALWARE": _DISTRUST,
    "MEMBER_OUTSIDE": _DISTRUST,
    "MEMBER_NAME": "Rename it, pack it anew, and ingest it again.",
    "MEMBER_DUPLICATE": "Rename one of the two, pack them anew, and ingest that again.",
    "MEMBER_UNNAMED": "Unpack it, and ingest what was in it.",
    "MEMBER_LINK": _NOTHING,
    "MEMBER_DEVICE": _NOTHING,
    "MEMBER_ENCRYPTED": _UNLOCK,
    "MEMBER_BROKEN": "Pack it anew, and ingest it again.",
    "MEMBER_METHOD": "Pack it with the usual compression (deflate), and ingest it again.",
    "TOO_MUCH_MEMORY": "Save it more simply; if it must be read, have `parse_memory_mib` raised, and release it.",
    "SPUN": "Save it more simply; if it must be read, have `parse_cpu_seconds` or `parse_wall_seconds` raised.",
    "CRASHED": _SUSPECT,
    "PARSER_FAILED": _SUSPECT,
    "CHANGED": _AGAIN,
    "VANISHED": _AGAIN,
    "MISSING": "Copy the stick again: its signed manifest lists a file that is not there.",
    "NOT_SIGNED": "Have it listed in a manifest of a signer that this box trusts.",
    "SIGNATURE_MISMATCH": "Copy the stick again from who signed it; the file is not what was signed.",
    "UNREADABLE": "Let the daemon's user read it; on a stick, copy it again.",
    "TRUNCATED": _REPAIR_STICK,
    "SIZE_MISMATCH": _REPAIR_STICK,
    "BAD_CHAIN": _REPAIR_STICK,
    "CHAIN_LOOP": _REPAIR_STICK,
    "CROSS_LINKED": _REPAIR_STICK,
    "FOLDER_LOOP": _REPAIR_STICK,
    "BAD_ENTRY": _REPAIR_STICK,
    "BAD_BOOT_SECTOR": _REPAIR_STICK,
    "BAD_PARTITION_TABLE": _REPAIR_STICK,
    "INCOMPLETE": "Copy it onto the stick again, and eject the stick before it is pulled.",
    "UNSUPPORTED_FILESYSTEM": "Format the stick as exFAT or FAT32, or have `stick_mount` name its file system.",
    "FOLDER_TOO_DEEP": "Move what is in it further up, and ingest the stick again.",
    "TOO_MANY_ENTRIES": "Spread the files over several sticks.",
    "TOO_MANY_FILES": "Spread the files over several sticks or folders.",
    "BAD_NAME": _RENAME,
    "NAME_TWICE": _RENAME,
    "NAME_TOO_LONG": _RENAME,
    "NOT_SCANNED": "Have the virus scanner take longer files (StreamMaxLength), and ingest it again.",
    "LINK": _COPY,
    "NOT_A_FILE": _COPY,
    "OTHER_DEVICE": "Ingest the other file system as a source of its own.",
    "OWN_DATA": _NOTHING,
    "READERS_DIFFER": "Change the stored document's readers, or delete it, then release this one.",
    "WRITTEN_TO": "Its watch takes it when its size or times have changed; if they will not, ingest it by hand.",
    "DELETED_BEFORE": "If it shall be there again, ingest the source by hand.",
}


MEMBER_PROBLEMS: Mapping[str, str] = {
    "MEMBER_OUTSIDE": "Its name leads out of the archive.",
    "MEMBER_NAME": "Its name is empty, too long, or has characters that no name should have.",
    "MEMBER_DUPLICATE": "Another file in the archive has the same name.",
    "MEMBER_UNNAMED": "The archive does not say its name.",
    "MEMBER_LINK": "It is a link.",
    "MEMBER_DEVICE": "It is a pipe or a device.",
    "MEMBER_ENCRYPTED": "It is encrypted.",
    "MEMBER_BROKEN": "It is not what the archive says it is.",
    "MEMBER_METHOD": "It is packed in a way that is not read.",
}
"""Why a container's member was left out, in words."""


def remedy_for(reason: str) -> str:
    """'' where there is no reason. A reason's part after a colon is its own: "MALWARE:Eicar"."""
    if not reason:
        return ""
    return REMEDIES.get(reason.partition(":")[0], _CONVERT)
