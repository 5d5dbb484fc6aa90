"""Which folders files may be taken from: those of the option, a tenant's own, its import folder, and nothing else."""

import os
from pathlib import Path

import pytest

from appliance.config import Config
from appliance.errors import InvalidArgument, NotFound, SourceRefused
from appliance.ingest.sources import kernel
from appliance.ingest.sources.roots import IMPORTS, Roots


def roots(tmp_path: Path, named: str = "") -> Roots:
    """Of a box whose data lies in `data`; named: as the option, DIR for `tmp_path`."""
    (tmp_path / "data" / "keys").mkdir(parents=True, exist_ok=True)
    (tmp_path / "data" / "keys" / "private.txt").write_text("secret")
    return Roots(Config(data_dir=tmp_path / "data", ingest_roots=named.replace("DIR", str(tmp_path))))


def file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(path.name)
    return path


def names(found: Roots, path: Path | str, tenant: str = "acme") -> list[str]:
    """What is found below a path. Raises as `Roots.open`."""
    with found.open(tenant, str(path)) as folder:
        return [one.name for one in folder.walk()]


# --- what is in and what is out --------------------------------------------------------------------------------------


def test_a_named_folder_is_open_with_all_below_and_its_single_files(tmp_path: Path) -> None:
    found = roots(tmp_path, "/nowhere, DIR/drop")
    one = file(tmp_path / "drop" / "below" / "a.txt")
    assert names(found, tmp_path / "drop") == ["below/a.txt"]
    assert names(found, f"//{tmp_path}/drop/./below/../below/") == ["a.txt"]
    with found.open("acme", str(one)) as folder:
        assert (folder.top, folder.single) == (str(one.parent), "a.txt")
        assert [seen.size_bytes for seen in folder.walk()] == [5]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "other",
        "other/a.txt",
        "dropped",
        "drop/../other/a.txt",
        "drop/way",
        "drop/way/a.txt",
        "none",
        "drop/../none",
    ],
)
def test_what_lies_in_no_named_folder_is_refused_whether_it_is_there_or_not(tmp_path: Path, path: str) -> None:
    found = roots(tmp_path, "DIR/drop")
    file(tmp_path / "other" / "a.txt")
    file(tmp_path / "dropped" / "a.txt")
    (tmp_path / "drop").mkdir()
    (tmp_path / "drop" / "way").symlink_to(tmp_path / "other", target_is_directory=True)
    if path == "drop/way":  # the link itself lies inside, and is no file to read
        with found.open("acme", str(tmp_path / path)) as folder:
            assert [one.refusal.file_reason for one in folder.walk() if one.refusal] == ["LINK"]
        return
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SourceRefused, match="ingest_roots"):
        names(found, tmp_path / path)
    assert os.listdir("/proc/self/fd") == before


def test_the_refusal_says_which_folders_there_are_and_the_other_ways(tmp_path: Path) -> None:
    found = roots(tmp_path, "/srv, DIR/drop, acme:/data/acme, globex:/data/globex")
    with pytest.raises(SourceRefused) as refused:
        names(found, "/home/eve/docs")
    told = str(refused.value)
    assert told.startswith("Nothing is taken from /home/eve/docs: ")
    assert f"`ingest_roots` gives you (/srv, {tmp_path}/drop, /data/acme)" in told
    assert "globex" not in told
    assert "`appliance ingest upload`" in told
    assert "import/documents/acme" in told
    assert f"{tmp_path}/data" not in told


def test_where_a_link_leads_is_told_only_of_links_in_named_folders(tmp_path: Path) -> None:
    found = roots(tmp_path, "DIR/drop")
    (tmp_path / "drop").mkdir()
    for place in (tmp_path / "drop", tmp_path):
        (place / "way").symlink_to(tmp_path / "secret-place")
    with pytest.raises(SourceRefused, match=r"secret-place/x, where .*/drop/way/x leads"):
        names(found, tmp_path / "drop" / "way" / "x")
    with pytest.raises(SourceRefused) as refused:
        names(found, tmp_path / "way" / "x")
    assert "secret-place" not in str(refused.value)
    with pytest.raises(SourceRefused) as refused:
        names(found, f"{tmp_path}/drop/../way/x")
    assert "secret-place" not in str(refused.value)


def test_a_path_outside_is_refused_before_anything_of_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = roots(tmp_path, "DIR/drop")
    file(tmp_path / "drop" / "a.txt")
    (tmp_path / "way").symlink_to(tmp_path / "drop", target_is_directory=True)
    monkeypatch.setattr(os, "lstat", None)  # by which links are followed
    with pytest.raises(SourceRefused):
        names(found, tmp_path / "way" / "a.txt")


def test_a_path_by_way_of_a_link_within_named_folders_is_open_under_its_own_name(tmp_path: Path) -> None:
    found = roots(tmp_path, "DIR/drop, DIR/other")
    one = file(tmp_path / "drop" / "a.txt")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "way").symlink_to(tmp_path / "drop", target_is_directory=True)
    with found.open("acme", str(tmp_path / "other" / "way" / "a.txt")) as folder:
        assert folder.top == str(one.parent)


def test_the_import_folder_is_open_by_a_data_directory_that_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk", target_is_directory=True)
    file(tmp_path / "data" / IMPORTS / "acme" / "a.txt")
    for name in ("data", "disk"):
        assert names(roots(tmp_path), tmp_path / name / IMPORTS / "acme") == ["a.txt"]


def test_a_folder_that_becomes_a_link_while_it_is_opened_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, real = roots(tmp_path, "DIR/drop"), kernel.openat2
    file(tmp_path / "drop" / "docs" / "a.txt")
    file(tmp_path / "secret" / "a.txt")

    def swapped(*arguments: object) -> int:
        if not (tmp_path / "drop" / "docs").is_symlink():
            (tmp_path / "drop" / "docs").rename(tmp_path / "drop" / "before")
            (tmp_path / "drop" / "docs").symlink_to(tmp_path / "secret", target_is_directory=True)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(kernel, "openat2", swapped)
    with pytest.raises(InvalidArgument, match="cannot be opened"):
        names(found, tmp_path / "drop" / "docs" / "a.txt")


@pytest.mark.parametrize("path", ["/proc/1/environ", "/proc", "/sys/kernel", "/etc/passwd", "/", "/dev/sda", "way/1"])
def test_the_rest_of_the_box_is_refused_by_the_default(tmp_path: Path, path: str) -> None:
    (tmp_path / "way").symlink_to("/proc", target_is_directory=True)
    (tmp_path / "data").mkdir()
    with pytest.raises(SourceRefused):
        names(Roots(Config(data_dir=tmp_path / "data")), str(tmp_path / path))


@pytest.mark.parametrize("path", ["relative/path", "", "./x", "/nul\0"])
def test_a_path_that_is_not_absolute_is_an_invalid_argument(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidArgument, match="path: must be absolute"):
        names(roots(tmp_path), path)


def test_a_path_in_a_named_folder_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no\\npe"):
        names(roots(tmp_path, "DIR"), tmp_path / "no\npe")
    with pytest.raises(NotFound):
        names(roots(tmp_path, "DIR"), file(tmp_path / "a.txt") / "below")


# --- the box's own data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["data", "data/keys", "data/keys/private.txt", "data/../data/keys", "way/keys"])
def test_no_path_leads_into_the_boxs_own_data_though_it_lies_in_a_named_folder(tmp_path: Path, path: str) -> None:
    found = roots(tmp_path, "DIR, DIR/data/keys")
    (tmp_path / "way").symlink_to(tmp_path / "data", target_is_directory=True)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SourceRefused, match="lies in the box's own data directory"):
        names(found, f"{tmp_path}/{path}")
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("named", ["", "DIR"])
def test_a_tenants_import_folder_is_open_to_it_alone(tmp_path: Path, named: str) -> None:
    found, mine = roots(tmp_path, named), tmp_path / "data" / IMPORTS / "acme"
    file(mine / "rules.txt")
    (mine / "keys").symlink_to("../../../keys", target_is_directory=True)
    assert names(found, mine) == ["keys", "rules.txt"]
    for tenant, path in (("globex", mine), ("acme", mine.parent), ("acme", mine / "keys" / "private.txt")):
        with pytest.raises((SourceRefused, InvalidArgument)):
            names(found, path, tenant)


def test_who_is_refused_finds_the_import_folder_that_he_is_told_of(tmp_path: Path) -> None:
    found = roots(tmp_path)
    with pytest.raises(SourceRefused):
        names(found, "/etc")
    assert (tmp_path / "data" / IMPORTS / "acme").stat().st_mode & 0o777 == 0o700
    assert names(found, tmp_path / "data" / IMPORTS / "acme") == []


# --- tenants ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_one_tenant_is_no_others_though_it_lies_in_one_of_everyones(tmp_path: Path) -> None:
    found = roots(tmp_path, "DIR/srv, acme:DIR/srv/acme, acme:DIR/srv/both, globex:DIR/srv/both, DIR/srv/acme/open")
    for name in ("acme", "both", "acme/open", "free"):
        file(tmp_path / "srv" / name / "a.txt")
    for name in ("acme", "both", "acme/open", "free"):
        assert "a.txt" in names(found, tmp_path / "srv" / name)
    for name in ("both", "acme/open", "free"):
        assert names(found, tmp_path / "srv" / name, "globex") == ["a.txt"]
    with pytest.raises(SourceRefused):
        names(found, tmp_path / "srv" / "acme", "globex")
    with pytest.raises(SourceRefused):
        names(found, tmp_path / "srv" / "acme" / "a.txt", "globex")


def test_a_folder_around_anothers_is_refused_where_it_would_be_walked_with_it(tmp_path: Path) -> None:
    found = roots(tmp_path, "DIR/srv, globex:DIR/srv/deep/globex")
    file(tmp_path / "srv" / "deep" / "globex" / "a.txt")
    for place in (tmp_path / "srv", tmp_path / "srv" / "deep"):
        with pytest.raises(SourceRefused, match="another tenant's"):
            names(found, place)
    assert names(found, tmp_path / "srv", "globex") == ["deep/globex/a.txt"]


@pytest.mark.parametrize("path", ["ACME", "ACME/a.txt", "ACME/below", "DEEP/x/a.txt"])
def test_another_name_of_a_tenants_folder_is_no_way_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    found, listed = roots(tmp_path, "DIR/srv, acme:DIR/srv/acme, acme:DIR/srv/deep/x"), os.listdir
    for name in ("ACME/a.txt", "ACME/below/a.txt", "DEEP/x/a.txt", "acme2/a.txt"):
        file(tmp_path / "srv" / name)
    assert names(found, tmp_path / "srv" / path, "globex") == ["a.txt"] or path == "ACME"  # a folder of its own
    monkeypatch.setattr(os, "listdir", lambda top: [name.lower() for name in listed(top)])  # as where case is ignored
    with pytest.raises(SourceRefused, match="name it as it is listed"):
        names(found, tmp_path / "srv" / path, "globex")
    assert names(found, tmp_path / "srv" / "acme2", "globex") == ["a.txt"]
    with pytest.raises(NotFound):
        names(found, tmp_path / "srv" / "none", "globex")


def test_a_file_that_goes_while_it_is_looked_for_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, one, lstat = roots(tmp_path, "DIR/drop"), file(tmp_path / "drop" / "a.txt"), os.lstat

    def goes(path: Path | str) -> os.stat_result:
        if path == one:
            one.unlink()
        return lstat(path)

    monkeypatch.setattr(os, "lstat", goes)
    with pytest.raises(NotFound):
        names(found, one)
