import json
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from appliance.gen.v1 import access_pb2
from tests.box import Box
from tests.cli.answers import STAMP, Cli

LATER = Timestamp(seconds=int((datetime.now(UTC) + timedelta(days=30)).timestamp()))
KEY = access_pb2.AppKey(
    name="appKeys/3f2a",
    tenant="default",
    user="crm",
    scopes=[access_pb2.APP_SCOPE_INFERENCE, access_pb2.APP_SCOPE_KNOWLEDGE],
    collections=["collections/handbook"],
    create_time=STAMP,
    expire_time=LATER,
)


def test_a_new_key_is_printed_once_with_a_warning_to_keep_it(box: Box, cli: Cli) -> None:
    box.answers["CreateAppKey"] = lambda request, context: access_pb2.CreateAppKeyResponse(
        app_key=KEY, token="3f2a.hush"
    )
    result = cli("apps", "create", "crm", "-s", "inference", "-s", "knowledge", "-c", "handbook", "--days", "30")
    assert result.stdout == "3f2a.hush\n"
    assert "Keep it now" in result.stderr
    asked = box.calls[0].request
    assert list(asked.scopes) == [access_pb2.APP_SCOPE_INFERENCE, access_pb2.APP_SCOPE_KNOWLEDGE]
    assert list(asked.collections) == ["collections/handbook"]
    assert (asked.user, asked.tenant, asked.lifetime.seconds) == ("crm", "", 30 * 86_400)


def test_a_new_key_as_json_holds_the_token_beside_the_key(box: Box, cli: Cli) -> None:
    box.answers["CreateAppKey"] = lambda request, context: access_pb2.CreateAppKeyResponse(
        app_key=KEY, token="3f2a.hush"
    )
    answer = json.loads(cli("apps", "create", "crm", "--json").stdout)
    assert answer["token"] == "3f2a.hush"
    assert answer["key"]["scopes"] == ["inference", "knowledge"]
    assert list(box.calls[0].request.scopes) == [access_pb2.APP_SCOPE_INFERENCE]


def test_a_scope_that_is_none_is_a_usage_error(box: Box, cli: Cli) -> None:
    assert cli("apps", "create", "crm", "-s", "everything").exit_code == 2
    assert box.calls == []


def test_the_list_says_which_keys_are_good(box: Box, cli: Cli) -> None:
    revoked = access_pb2.AppKey(name="appKeys/aa", user="old", expire_time=LATER, create_time=STAMP, revoke_time=STAMP)
    expired = access_pb2.AppKey(name="appKeys/bb", user="past", expire_time=STAMP, create_time=STAMP)
    box.answers["ListAppKeys"] = lambda request, context: access_pb2.ListAppKeysResponse(
        app_keys=[KEY, revoked, expired]
    )
    _, first, second, third = cli("apps", "list").stdout.splitlines()
    assert first.split()[:5] == ["3f2a", "default/crm", "good", "inference", "knowledge"]
    assert "revoked" in second
    assert "expired" in third
    assert json.loads(cli("apps", "list", "--json").stdout)["keys"][0]["collections"] == ["handbook"]


def test_revoking_asks_first_and_names_the_key(box: Box, cli: Cli) -> None:
    box.answers["RevokeAppKey"] = lambda request, context: access_pb2.RevokeAppKeyResponse(app_key=KEY)
    assert cli("apps", "revoke", "3f2a", input="n\n").exit_code == 130
    assert box.calls == []
    assert "Revoked 3f2a of crm." in cli("apps", "revoke", "3f2a", "--yes").stdout
    assert box.calls[0].request.name == "appKeys/3f2a"
