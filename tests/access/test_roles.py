import pytest

from appliance.access import roles
from appliance.errors import Forbidden, Unauthenticated
from appliance.gen.v1 import access_pb2, inference_pb2, ingest_pb2, job_pb2, knowledge_pb2, model_pb2, telemetry_pb2
from appliance.types import Principal, Role

ADMIN = "spiffe://appliance/tenant/default/user/ann/role/admin"
SERVICES = (access_pb2, inference_pb2, ingest_pb2, job_pb2, knowledge_pb2, model_pb2, telemetry_pb2)


def context(*names: str, certificate: bytes = b"pem", transport: bytes = b"ssl") -> dict[str, list[bytes]]:
    return {
        "transport_security_type": [transport],
        "x509_pem_cert": [certificate],
        "x509_subject_alternative_name": [name.encode() for name in names],
    }


def test_a_caller_is_named_by_the_uri_of_its_certificate() -> None:
    assert roles.principal(context(ADMIN)) == Principal("default", "ann", Role.ADMIN)
    assert roles.principal(context("localhost", ADMIN)) == Principal("default", "ann", Role.ADMIN)


@pytest.mark.parametrize("role", Role)
def test_every_principal_reads_back_from_its_uri(role: Role) -> None:
    caller = Principal("lab-7", "j.doe_2", role)
    assert roles.principal(context(roles.identity_uri(caller))) == caller


@pytest.mark.parametrize("caller", [Principal("a/b", "ann", Role.APP), Principal("a", "", Role.APP)])
def test_a_principal_that_would_not_read_back_gets_no_uri(caller: Principal) -> None:
    with pytest.raises(ValueError, match="cannot be named"):
        roles.identity_uri(caller)


@pytest.mark.parametrize(
    "name",
    [
        "spiffe://other/tenant/default/user/ann/role/admin",
        "spiffe://appliance/tenant/default/user/ann/role/root",
        "spiffe://appliance/tenant/default/user/ann/role/admin/",
        "spiffe://appliance/tenant/default/user/ann/role/admin\n",
        "spiffe://appliance/tenant/Default/user/ann/role/admin",
        "spiffe://appliance/tenant//user/ann/role/admin",
        "spiffe://appliance/tenant/default/user/a%2Fb/role/admin",
        "spiffe://appliance/tenant/default/user/ännchen/role/admin",
        " " + ADMIN,
        "localhost",
    ],
)
def test_any_other_name_is_nobody(name: str) -> None:
    with pytest.raises(Unauthenticated, match="does not name a caller"):
        roles.principal(context(name))


def test_two_identities_in_one_certificate_are_nobody() -> None:
    with pytest.raises(Unauthenticated):
        roles.principal(context(ADMIN, ADMIN.replace("admin", "app")))


@pytest.mark.parametrize("auth_context", [{}, context(ADMIN, certificate=b""), context(ADMIN, transport=b"insecure")])
def test_a_call_without_a_certificate_is_nobody(auth_context: dict[str, list[bytes]]) -> None:
    with pytest.raises(Unauthenticated, match="without a client certificate"):
        roles.principal(auth_context)


def test_the_table_knows_every_method_and_no_other() -> None:
    methods = {
        f"/{service.full_name}/{method.name}"
        for file in SERVICES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert set(roles.ALLOWED) == methods


def test_an_admin_may_call_everything() -> None:
    for action in roles.ALLOWED:
        roles.allow(Principal("default", "ann", Role.ADMIN), action)


@pytest.mark.parametrize(
    ("role", "action", "may"),
    [
        (Role.APP, "KnowledgeService/Ask", True),
        (Role.APP, "InferenceService/Chat", True),
        (Role.APP, "KnowledgeService/DeleteDocument", False),
        (Role.APP, "IngestService/StartIngestion", False),
        (Role.APP, "IngestService/GetLineage", False),
        (Role.AUDITOR, "IngestService/GetReport", True),
        (Role.AUDITOR, "IngestService/ApproveIngestion", False),
        (Role.AUDITOR, "IngestService/ReleaseFiles", False),
        (Role.OPERATOR, "IngestService/ApproveIngestion", True),
        (Role.OPERATOR, "IngestService/PurgeFiles", True),
        (Role.OPERATOR, "IngestService/UploadFile", True),
        (Role.OPERATOR, "IngestService/AllowDevice", False),
        (Role.OPERATOR, "IngestService/TrustSigner", False),
        (Role.OPERATOR, "IngestService/WatchSource", False),
        (Role.OPERATOR, "IngestService/UnwatchSource", False),
        (Role.APP, "ModelService/ImportModel", False),
        (Role.APP, "JobService/ListJobs", False),
        (Role.AUDITOR, "KnowledgeService/Ask", False),
        (Role.AUDITOR, "IngestService/ListQuarantine", True),
        (Role.AUDITOR, "JobService/CancelJob", False),
        (Role.AUDITOR, "TelemetryService/WatchHealth", True),
        (Role.OPERATOR, "ModelService/ImportModel", True),
        (Role.OPERATOR, "ModelService/DeleteModel", False),
        (Role.OPERATOR, "KnowledgeService/DeleteCollection", False),
    ],
)
def test_a_role_may_do_its_work_and_no_more(role: Role, action: str, may: bool) -> None:
    caller = Principal("default", "ann", role)
    if may:
        roles.allow(caller, f"/appliance.v1.{action}")
        return
    with pytest.raises(Forbidden, match=role.value):
        roles.allow(caller, f"/appliance.v1.{action}")


def test_a_method_that_is_not_in_the_table_is_forbidden_to_everyone() -> None:
    for role in Role:
        with pytest.raises(Forbidden):
            roles.allow(Principal("default", "ann", role), "/appliance.v1.AccessService/MakeAdmin")
