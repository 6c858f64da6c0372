"""TLS towards NATS: whom a process believes, and by what it is believed itself."""

import ssl

from millrace.settings import Process, SettingError


def context(given: Process) -> ssl.SSLContext | None:
    """None without a setting: an address that says tls:// is then checked by the system's authorities."""
    if not (given.tls_ca or given.tls_cert or given.tls_key):
        return None
    try:
        made = ssl.create_default_context(cafile=given.tls_ca or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingError(f"tls_ca: {given.tls_ca}: {error}") from None
    if bool(given.tls_cert) != bool(given.tls_key):
        raise SettingError("tls_cert and tls_key: one is of no use without the other")
    if given.tls_cert:
        try:
            made.load_cert_chain(given.tls_cert, given.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise SettingError(f"tls_cert {given.tls_cert}, tls_key {given.tls_key}: {error}") from None
    return made
