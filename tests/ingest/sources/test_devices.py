import asyncio
import os
from pathlib import Path

import pytest

from appliance.ingest.sources.devices import Device, UsbDevices

UEVENT = Path("/sys/block/loop0/uevent")


def plug(sysfs: Path, node: str, serial: str, sectors: str = "8192", bus: str = "usb1", text: str = "SanDisk") -> None:
    """A disk as the kernel shows one."""
    usb = sysfs / "devices" / "pci0000:00" / bus / "1-2"
    disk = usb / "1-2:1.0" / "host6" / "target6:0:0" / node / "block" / node
    (disk / "device").mkdir(parents=True)
    (usb / "idVendor").write_text("0781\n")
    if serial:
        (usb / "serial").write_text(f"{serial}\n")
    (disk / "size").write_text(f"{sectors}\n")
    (disk / "removable").write_text("1\n")
    (disk / "device" / "vendor").write_text(f"{text} \n")
    (disk / "device" / "model").write_text("Ultra\n")
    (sysfs / "block").mkdir(exist_ok=True)
    (sysfs / "block" / node).symlink_to(disk)


def test_usb_disks_are_listed_with_what_they_say_of_themselves(tmp_path: Path) -> None:
    plug(tmp_path, "sdb", "4C530001")
    plug(tmp_path, "sda", "", bus="ata1")
    assert UsbDevices(tmp_path).list() == (Device("/dev/sdb", "4C530001", "SanDisk", "Ultra", 8192 * 512, True),)


def test_a_card_reader_without_a_card_and_a_lying_size_are_no_disk(tmp_path: Path) -> None:
    plug(tmp_path, "sdb", "1", sectors="0")
    plug(tmp_path, "sdc", "2", sectors="-5", bus="usb2")
    assert UsbDevices(tmp_path).list() == ()


def test_what_a_device_says_is_printable_and_short_and_its_id_plain(tmp_path: Path) -> None:
    plug(tmp_path, "sdb", "../../x y\u202e\x1b[2J" + "9" * 500, text="\x1b]0;owned\x07")
    (device,) = UsbDevices(tmp_path).list()
    assert device.serial.isprintable()
    assert device.vendor.isprintable()
    assert len(device.serial) == 128
    assert device.id.startswith("usb-..-..-x-y-u202e-x1b-2J9")
    assert "/" not in device.id
    assert len(device.id) <= 68


def test_a_device_without_a_serial_number_is_told_by_its_node(tmp_path: Path) -> None:
    plug(tmp_path, "sdb", "")
    (device,) = UsbDevices(tmp_path).list()
    assert device.id == "usb-no-serial-sdb"


def test_without_sysfs_there_are_no_sticks(tmp_path: Path) -> None:
    assert UsbDevices(tmp_path / "none").list() == ()


@pytest.mark.skipif(os.geteuid() != 0 or not UEVENT.exists(), reason="only root makes the kernel tell of a device")
async def test_a_change_wakes_all_who_wait(tmp_path: Path) -> None:
    devices = UsbDevices(tmp_path, events="kernel")
    waiting = [asyncio.create_task(devices.changed(60)) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.to_thread(UEVENT.write_text, "change")
    await asyncio.gather(*waiting)
    devices.close()


async def test_waiting_for_a_change_ends_with_its_time(tmp_path: Path) -> None:
    devices = UsbDevices(tmp_path)
    await devices.changed(0.01)
    await asyncio.gather(devices.changed(0.01), devices.changed(0.01))
    devices.close()
