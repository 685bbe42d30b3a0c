"""What a Service may ask for and the data plane does not do yet: said, never silently ignored."""

from __future__ import annotations

from lb.model import Protocol, Service


def unsupported(service: Service) -> tuple[str, ...]:
    """Return, for each such field, its dotted path and what happens instead; empty when all is well.

    The meaning of the fields is that of the Kubernetes API reference, core/v1 ServiceSpec.
    """
    if not service.proxied or not (service.cluster_ips or service.external_ips or service.load_balancer_ips):
        return ()
    found = [
        f"spec.ports[{index}].protocol: SCTP is not translated; the port is not served"
        for index, port in enumerate(service.ports)
        if port.protocol is Protocol.SCTP
    ]
    addresses = (*service.cluster_ips, *service.external_ips, *service.load_balancer_ips)
    if any(address.version == 6 for address in addresses):
        found.append("IPv6 addresses: IPv6 is not translated; only the IPv4 addresses are served")
    return tuple(found)
