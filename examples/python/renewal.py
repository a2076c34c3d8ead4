"""A certificate that the device gets for itself (docs/protocol.md R-29, R-41, R-42), and where it lies meanwhile.

`renewal.pem` holds what is on its way: first the new key alone, then the key and its chain. One rename replaces it, and
the pair in `device.crt` and `device.key` stays until the gateway has said `welcome` to the new one."""
import os
from datetime import datetime, timezone
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

def store(path, data, mode=0o600):
    """A crash leaves the old file or the new one."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    sync(path.parent)

def sync(folder):
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)

def pairs(bundle):
    """Certificate and key files to be shown, the newest first: while neither is let in, both are kept."""
    renewal = bundle / "renewal.pem"
    new = renewal.exists() and b"BEGIN CERTIFICATE" in renewal.read_bytes()
    try:
        new = new and x509.load_pem_x509_certificates(renewal.read_bytes())
    except ValueError:  # of no use to anybody
        new = forget(bundle)
    return ([(renewal, None)] if new else []) + [(bundle / "device.crt", bundle / "device.key")]

def request(bundle, device):
    """A CSR. Its key is on the disk before anybody hears of it: the same key again brings the same chain."""
    renewal = bundle / "renewal.pem"
    try:
        key = serialization.load_pem_private_key(renewal.read_bytes(), None)
    except (FileNotFoundError, ValueError):
        new = ec.generate_private_key(ec.SECP256R1())
        store(renewal, new.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                         serialization.NoEncryption()))
        key = new
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()

def keep(bundle, device, chain):
    """What came for the key. `None`, or what is wrong with it."""
    renewal = bundle / "renewal.pem"
    key = serialization.load_pem_private_key(renewal.read_bytes(), None)
    try:
        leaf = x509.load_pem_x509_certificates(chain.encode())[0]
    except ValueError as error:
        return f"it is no certificate: {error}"
    names = [name.value for name in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if leaf.public_key() != key.public_key() or names != [device]:
        return f"it is for another key or device: {names}"
    if leaf.not_valid_after_utc <= datetime.now(timezone.utc):
        return "it has expired already"
    store(renewal, key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                     serialization.NoEncryption()) + chain.encode())
    return None

def promote(bundle):
    """The new pair was let in. Between the two files it is `renewal.pem` that is whole, so that goes last."""
    text = (bundle / "renewal.pem").read_bytes()
    certificates = text.index(b"-----BEGIN CERTIFICATE")
    store(bundle / "device.key", text[:certificates])
    store(bundle / "device.crt", text[certificates:], 0o644)
    forget(bundle)

def forget(bundle):
    (bundle / "renewal.pem").unlink(missing_ok=True)
    sync(bundle)
