"""What can go wrong with a request to S3: the code of an error, whether waiting helps, and what the user can mend.

The two clients report the same fault in different words: botocore with S3's own code (`NoSuchKey`) and the status,
pyarrow with a sentence that holds the C++ SDK's (`AWS Error NO_SUCH_KEY during GetObject operation: ...`).
"""

import re

from botocore.exceptions import BotoCoreError, ClientError
from s3fs.core import S3_RETRYABLE_ERRORS

from segtrain.errors import StorageError, UserError

_PERMISSION = "access is denied; use a key that has this permission, or another bucket"
_NO_KEYS = "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_OLD_TOKEN = "the session token is not valid any more; get new credentials"
_REGION = "the bucket is in another region; set storage.region or AWS_REGION"
_NAME = "this is no valid bucket name; use 3 to 63 small letters, digits, dots and hyphens"

# What only the user can mend, by the service's code or by botocore's class.
MISTAKES = {
    "NoSuchBucket": "the bucket does not exist; check its name, the region and AWS_ENDPOINT_URL",
    "InvalidBucketName": _NAME,
    "ParamValidationError": _NAME,
    "AccessDenied": _PERMISSION,
    "403": _PERMISSION,
    "InvalidAccessKeyId": "the server does not know the access key; check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key; check AWS_SECRET_ACCESS_KEY",
    "NoCredentialsError": _NO_KEYS,
    "PartialCredentialsError": _NO_KEYS,
    "ProfileNotFound": "the profile in AWS_PROFILE does not exist; name one that does",
    "ExpiredToken": _OLD_TOKEN,
    "InvalidToken": _OLD_TOKEN,
    "PermanentRedirect": _REGION,
    "301": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
}
# An answer to a HEAD request has no body, so its status is all that is known: 403 may be the key, the secret or the
# permission, 400 an old token, 301 the region.
WITHOUT_REASON = ("301", "400", "403")
# 4xx answers that another attempt can change; the rest of them are final.
_PASSING_STATUS = (408, 409, 425, 429)
_PASSING_CODES = ("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch")
_FINAL_CODES = ("NoSuchKey", "NoSuchUpload", "PreconditionFailed", *MISTAKES)

# All that the two clients raise; anything else is a bug and passes through.
FAULTS = (OSError, BotoCoreError, ClientError, *S3_RETRYABLE_ERRORS)


def error_code(error: BaseException) -> str:
    """S3's code (`NoSuchBucket`), the status where an answer has no code (`404`), or botocore's class; else empty."""
    for each in (error, error.__cause__):
        if isinstance(each, ClientError):
            return str(each.response.get("Error", {}).get("Code", ""))
        if isinstance(each, BotoCoreError):
            return type(each).__name__
    found = re.search(r"AWS Error ([A-Z_]+)(?: \(HTTP status (\d+)\))? during (\w+)", str(error))
    if not found:
        return ""
    name, status, operation = found.groups()
    if name == "ACCESS_DENIED" and operation == "HeadObject":
        return "403"
    return status or name.title().replace("_", "")


def is_passing(error: Exception) -> bool:
    """Whether another attempt may succeed: throttling, timeouts, broken connections, cut bodies, 5xx answers."""
    if isinstance(error, (FileNotFoundError, PermissionError, StorageError, UserError)):
        return False
    code = error_code(error)
    if code in _FINAL_CODES:
        return False
    answer = error if isinstance(error, ClientError) else error.__cause__
    if isinstance(answer, ClientError) and code not in _PASSING_CODES:
        return _passes(answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
    return _passes(int(code)) if code.isdigit() else isinstance(error, FAULTS)


def _passes(status: int) -> bool:
    return status >= 500 or status in _PASSING_STATUS
