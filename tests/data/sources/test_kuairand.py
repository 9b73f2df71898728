"""KuaiRand in the official form of its tar.gz, written by hand from the README."""

import io
import tarfile
from pathlib import Path

import pytest

from onerec.data.settings import DataSettings, FeedbackKind
from onerec.data.sources.kuairand import load, release
from onerec.data.tables import ITEM, TIMESTAMP, USER
from onerec.errors import DataError

LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)
USER_HEADER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,"
    "register_days_range," + ",".join(f"onehot_feat{index}" for index in range(18)) + "\n"
)
VIDEO_HEADER = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag\n"
)
FILES = {
    "log_standard_4_22_to_5_08_pure.csv": LOG_HEADER
    + "0,20,20220422,1600,1650614400001,1,1,0,0,0,0,1,20500,10000,0,1500,0,0,1\n",
    "log_standard_4_08_to_4_21_pure.csv": LOG_HEADER
    + "0,10,20220411,1900,1649675512388,0,0,0,0,0,0,0,1385,209900,0,0,0,0,1\n"
    + "1,20,20220411,1100,1649645295928,0,0,0,0,0,1,0,0,65400,250,0,1,0,8\n",
    "log_random_4_22_to_5_08_pure.csv": LOG_HEADER
    + "1,10,20220422,1600,1650614400002,1,0,0,0,0,0,0,9000,10000,0,0,0,1,1\n",
    "video_features_basic_pure.csv": VIDEO_HEADER
    + "10,123,NORMAL,2022-04-10,LongImport,0.0,209900.0,720.0,1280.0,9155697141.0,9.0,39\n"
    + '20,456,AD,,Kmovie,0.0,,720.0,1280.0,6355810746,4,"12,65"\n'
    + "30,789,NORMAL,2022-04-09,ShortImport,1,9233.0,720,1280,,,\n",
    "user_features_pure.csv": USER_HEADER
    + '0,full_active,0,0,0,5,"(0,10]",0,0,0,0,3624,730+,'
    + ",".join("1" for _ in range(18))
    + "\n"
    + '1,UNKNOWN,0,0,1,12,"(10,50]",3,"[1,10)",0,0,20,15-30,'
    + ",".join(["0.0"] * 17 + [""])
    + "\n",
    "video_features_statistic_pure.csv": "video_id,counts\n10,66\n",
}


def write_archive(folder: Path, files: dict[str, str]) -> Path:
    path = folder / "mine.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"KuaiRand-Pure/data/{name}")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def settings(path: Path) -> DataSettings:
    return DataSettings(source="kuairand", variant="pure", path=path)


def test_logs_in_order_of_time_with_seconds_and_flags(tmp_path: Path) -> None:
    tables = load(settings(write_archive(tmp_path, FILES)))
    assert tables.events.select(USER, ITEM, TIMESTAMP).rows() == [
        (0, 10, 1649675512.388),
        (1, 20, 1649645295.928),
        (0, 20, 1650614400.001),
    ]
    last = tables.events.row(2, named=True)
    assert (last["is_click"], last["is_like"], last["is_hate"], last["long_view"]) == (1, 1, 0, 1)
    assert (last["play_time_s"], last["duration_s"], last["comment_stay_time_s"]) == (20.5, 10.0, 1.5)
    assert set(tables.feedback) == set(tables.events.columns) - {USER, ITEM, TIMESTAMP}
    assert tables.feedback["is_profile_enter"] is FeedbackKind.BINARY
    assert tables.feedback["play_time_s"] is FeedbackKind.SECONDS
    assert tables.file_and_row("events", 2) == ("log_standard_4_22_to_5_08_pure.csv", 0)
    assert "random-exposure" in tables.notes[0]


def test_videos_and_users_with_quoted_ranges_and_empty_fields(tmp_path: Path) -> None:
    tables = load(settings(write_archive(tmp_path, FILES)))
    columns = (ITEM, "author_id", "video_type", "upload_dt", "tags", "music_id", "music_type", "duration_s")
    assert tables.items.select(columns).rows() == [
        (10, 123, "NORMAL", "2022-04-10", "39", 9155697141, 9, 209.9),
        (20, 456, "AD", None, "12,65", 6355810746, 4, None),
        (30, 789, "NORMAL", "2022-04-09", None, None, None, 9.233),
    ]
    assert tables.users is not None
    columns = (USER, "user_active_degree", "follow_user_num_range", "register_days", "onehot_feat0", "onehot_feat17")
    assert tables.users.select(columns).rows() == [
        (0, "full_active", "(0,10]", 3624, 1, 1),
        (1, "UNKNOWN", "(10,50]", 20, 0, None),
    ]


def test_a_folder_reads_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "KuaiRand-Pure" / "data"
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    packed, unpacked = load(settings(write_archive(tmp_path, FILES))), load(settings(tmp_path / "KuaiRand-Pure"))
    assert unpacked.events.equals(packed.events)
    assert unpacked.items.equals(packed.items)


def test_malformed_lines_and_missing_files_are_told(tmp_path: Path) -> None:
    name = "log_standard_4_08_to_4_21_pure.csv"
    broken = FILES | {name: FILES[name] + "2,20,20220411,1100,,0,0,0,0,0,1,0,0,65400,250,0,1,0,8\n"}
    with pytest.raises(DataError, match=rf"{name}: 1 malformed lines, first line 4: time_ms is empty"):
        load(settings(write_archive(tmp_path, broken)))
    partial = {name: text for name, text in FILES.items() if not name.startswith("log_standard")}
    with pytest.raises(DataError, match=r"expected also log_standard_\*\.csv"):
        load(settings(write_archive(tmp_path, partial)))


def test_the_checksums_are_those_of_the_readme() -> None:
    (file,) = release("27k").files
    assert file.url == "https://zenodo.org/records/10439422/files/KuaiRand-27K.tar.gz"
    assert file.checksum == "md5:3e3c799a24e2d23a4d2c757fbf9adf59"
