"""The public address of a bucket: the base of links that stay valid, and why there is none.

A bucket that AWS_STORAGE_BUCKET_NAME names is that of the image worker which this replaces. Its pictures are public, and its backend keeps
the links, so they are plain addresses of objects. Links into any other bucket are presigned, and expire, unless STORE_PUBLIC_URL is set.
"""

from bus.storage.settings import StoreSettings

AMAZON_HOST = "amazonaws.com"
EXPIRY_CURE = "set STORE_PUBLIC_URL, or UPLOAD_PUBLIC_URL beside UPLOAD_URL, to the public address of the bucket"


def permanent_base(settings: StoreSettings) -> str | None:
    """The address to which the keys of the bucket are appended; None where links are presigned."""
    if settings.store_public_url:
        return settings.store_public_url.rstrip("/")
    bucket = settings.aws_storage_bucket_name
    return object_base(bucket, settings) if bucket and is_in_bucket(settings.store_url, bucket) else None


def object_base(bucket: str, settings: StoreSettings) -> str:
    """The address of the objects of a bucket: by its host at Amazon, below the path of any other server unless the style is virtual."""
    if settings.aws_s3_endpoint_url:
        scheme, _, host = settings.aws_s3_endpoint_url.rstrip("/").partition("://")
        return f"{scheme}://{bucket}.{host}" if settings.aws_s3_addressing_style == "virtual" else f"{scheme}://{host}/{bucket}"
    host = f"s3.{settings.aws_s3_region_name}.{AMAZON_HOST}" if settings.aws_s3_region_name else f"s3.{AMAZON_HOST}"
    # The certificate is for one label before the host.
    return f"https://{host}/{bucket}" if "." in bucket or settings.aws_s3_addressing_style == "path" else f"https://{bucket}.{host}"


def is_in_bucket(store_url: str, bucket: str) -> bool:
    return store_url == f"s3://{bucket}" or store_url.startswith(f"s3://{bucket}/")


def describe_expiry(settings: StoreSettings) -> str | None:
    """Why the links to this store do not stay valid; None when they do."""
    if not settings.store_url.startswith("s3://") or permanent_base(settings):
        return None
    days = settings.s3_presign_seconds / 86400
    return f"links into {settings.store_url} are presigned and expire after {days:g} days"
