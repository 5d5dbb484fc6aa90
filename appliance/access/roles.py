"""Who a caller is, from its certificate, and what its role may call: deny by default.

A caller is named by one URI in its certificate: spiffe://appliance/tenant/TENANT/user/USER/role/ROLE. TLS has already
proven that this box's authority signed it for use by a client; here it is only read, and strictly.
"""

import re
from collections.abc import Iterable, Mapping

from appliance.errors import Forbidden, Unauthenticated
from appliance.types import Principal, Role

IDENTITY = re.compile(
    r"spiffe://appliance/tenant/(?P<tenant>[a-z0-9][a-z0-9-]{0,62})"
    r"/user/(?P<user>[A-Za-z0-9][A-Za-z0-9._-]{0,63})"
    r"/role/(?P<role>admin|operator|auditor|app)",
    re.ASCII,
)

ADMIN, OPERATOR, AUDITOR, APP = Role.ADMIN, Role.OPERATOR, Role.AUDITOR, Role.APP
ASK = frozenset({ADMIN, OPERATOR, APP})
WRITE = frozenset({ADMIN, OPERATOR})
OBSERVE = frozenset({ADMIN, OPERATOR, AUDITOR})
EVERY_ROLE = frozenset(Role)
ONLY_ADMIN = frozenset({ADMIN})

ALLOWED: Mapping[str, frozenset[Role]] = {
    f"/appliance.v1.{service}/{method}": roles
    for roles, services in (
        (
            ASK,
            {
                "InferenceService": ("Chat", "Embed", "Rerank", "Tokenize"),
                "KnowledgeService": (
                    "ListCollections",
                    "GetCollection",
                    "ListDocuments",
                    "GetDocument",
                    "Search",
                    "Ask",
                ),
            },
        ),
        (
            WRITE,
            {
                "KnowledgeService": (
                    "CreateCollection",
                    "DeleteDocument",
                    "SetDocumentReaders",
                    "CompactCollection",
                    "VerifyCollection",
                    "ListFaults",
                    "ReembedCollection",
                    "BackupCollection",
                ),
                "IngestService": (
                    "StartIngestion",
                    "ApproveIngestion",
                    "ResumeIngestion",
                    "CancelIngestion",
                    "ReleaseFiles",
                    "PurgeFiles",
                    "CreateUpload",
                    "UploadFile",
                    "GetUpload",
                    "CancelUpload",
                ),
                "JobService": ("CancelJob",),
                "ModelService": (
                    "ImportModel",
                    "LoadModel",
                    "UnloadModel",
                    "PinModel",
                    "QuantizeModel",
                    "SetAlias",
                    "PromoteAlias",
                    "RollbackAlias",
                    "DeleteAlias",
                ),
            },
        ),
        (
            ONLY_ADMIN,
            {
                "AccessService": (
                    "CreateAppKey",
                    "ListAppKeys",
                    "RevokeAppKey",
                    "SetGroup",
                    "GetGroup",
                    "ListGroups",
                    "DeleteGroup",
                ),
                "KnowledgeService": (
                    "DeleteCollection",
                    "RotateKeys",
                    "ExportCollection",
                    "ImportCollection",
                    "RestoreCollection",
                    "AcceptRollback",
                    "ShredTenant",
                ),
                "IngestService": ("WatchSource", "UnwatchSource", "AllowDevice", "TrustSigner"),
                "ModelService": ("DeleteModel",),
            },
        ),
        (
            OBSERVE,
            {
                "IngestService": (
                    "ListSources",
                    "GetIngestion",
                    "ListIngestions",
                    "ListFiles",
                    "GetReport",
                    "ListQuarantine",
                    "ListUploads",
                    "GetLineage",
                ),
                "JobService": ("GetJob", "ListJobs", "WatchJob"),
                "ModelService": ("PlanModel", "ListImportedFiles"),
                "TelemetryService": ("WatchHealth", "WatchEngine"),
            },
        ),
        (
            EVERY_ROLE,
            {
                "ModelService": ("ListModels", "GetModel", "ListAliases"),
                "TelemetryService": ("GetStatus",),
            },
        ),
    )
    for service, methods in services.items()
    for method in methods
}


def identity_uri(principal: Principal) -> str:
    """The URI name for a certificate. Raises ValueError where `principal` would not read it back the same."""
    uri = f"spiffe://appliance/tenant/{principal.tenant}/user/{principal.user}/role/{principal.role.value}"
    if IDENTITY.fullmatch(uri) is None:
        raise ValueError(f"{principal} cannot be named in a certificate")
    return uri


def principal(auth_context: Mapping[str, Iterable[bytes]]) -> Principal:
    """The caller from gRPC's authentication context. Raises Unauthenticated.

    Exactly one URI name must be there: a certificate with two could be read as either.
    """
    if list(auth_context.get("transport_security_type", ())) != [b"ssl"] or not any(
        auth_context.get("x509_pem_cert", ())
    ):
        raise Unauthenticated("The call came without a client certificate.")
    names = [name.decode("ascii", "replace") for name in auth_context.get("x509_subject_alternative_name", ())]
    found = [name for name in names if "://" in name]
    match = IDENTITY.fullmatch(found[0]) if len(found) == 1 else None
    if match is None:
        raise Unauthenticated("The client certificate does not name a caller of this box.")
    return Principal(match["tenant"], match["user"], Role(match["role"]))


def allow(principal: Principal, action: str) -> None:
    """Let the caller use the gRPC method `action` ("/appliance.v1.JobService/GetJob"), or raise Forbidden."""
    if principal.role not in ALLOWED.get(action, frozenset()):
        raise Forbidden(f"The role {principal.role.value} may not call {action}.")
