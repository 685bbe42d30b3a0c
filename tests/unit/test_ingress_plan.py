# SPDX-License-Identifier: Apache-2.0
"""What is served for which Ingress: hosts, paths, defaults, certificates; who has what two of them claim."""

from __future__ import annotations

import dataclasses

import pytest

from lb.errors import InputError
from lb.ingress.objects import IngressClass
from lb.ingress.plan import CONTROLLER, Site, Target, Upstream, ours, plan
from lb.model import EndpointSlice, ObjectKey, Service, ServiceType
from tests.unit.ingress_objects import endpoints, good, ingress, rule, secret, service

SERVICES = (service("a"), service("b"), service("kubia", ("http", 80), ("mux", 90)))
SLICES = (endpoints("10.0.0.1", of="a"), endpoints("10.0.0.2", of="b"), endpoints("10.0.0.3", port="http"))
OLD, NEW = "2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z"


def planned(
    *texts: str, services: tuple[Service, ...] = SERVICES, slices: tuple[EndpointSlice, ...] = SLICES
) -> tuple[Site, list[InputError]]:
    content = good(*texts)
    taken, errors = ours(content.ingresses.values(), content.classes)
    site, more = plan(taken, services, slices, content.certificates)
    return site, [*errors, *more]


def routes(site: Site, host: str = "") -> dict[str, Target | str]:
    """Return what leads where: ``= /exact`` and ``/prefix/`` to the Service's name or a status."""
    [server] = [each for each in site.servers if each.host == host]
    return {
        ("= " if each.exact else "") + each.path: each.target.name.split(".")[1]
        if isinstance(each.target, Upstream)
        else each.target
        for each in server.locations
    }


def test_hosts_and_paths() -> None:
    site, errors = planned(
        ingress(
            "  rules:\n"
            + rule("kubia.example.com", "Prefix / kubia:http", "Exact /b b:80", "Prefix /a/ a:80")
            + rule("*.example.com", "ImplementationSpecific /b b:80")
            + rule("", "Prefix / b:80")
        )
    )
    assert not errors
    assert routes(site, "kubia.example.com") == {"/": "kubia", "= /a": "a", "/a/": "a", "= /b": "b"}
    assert routes(site, "*.example.com") == {"/": 404, "= /b": "b", "/b/": "b"}
    assert routes(site) == {"/": "b"}


def test_exact_goes_before_prefix_and_means_nothing_else() -> None:
    site, errors = planned(
        ingress(
            "  rules:\n" + rule("", "Prefix /a a:80", "Exact /a b:80", "Exact /a/x/ b:80", "Exact /c/ b:80")
        )
    )
    assert not errors
    assert routes(site) == {
        "/": 404,
        "= /a": "b",
        "/a/": "a",
        "= /a/x": "a",  # a proxy may redirect /a/x to /a/x/ by itself: that is not asked for
        "= /a/x/": "b",
        "= /c": 404,
        "= /c/": "b",
    }


def test_the_default_backend_gets_the_rest() -> None:
    rest = "  defaultBackend: {service: {name: b, port: {number: 80}}}\n"
    site, errors = planned(
        ingress(rest + "  rules:\n" + rule("own.example.com", "Prefix /a a:80"), "first"),
        ingress("  rules:\n" + rule("other.example.com", "Prefix /a a:80"), "second"),
    )
    assert not errors
    for host in ("own.example.com", "other.example.com"):
        assert routes(site, host) == {"/": "b", "= /a": "a", "/a/": "a"}
    assert routes(site) == {"/": "b"}


def test_of_two_defaults_the_older_is_for_all_and_each_for_its_own_hosts() -> None:
    def default(name: str) -> str:
        return f"  defaultBackend: {{service: {{name: {name}, port: {{number: 80}}}}}}\n"

    site, errors = planned(
        ingress(default("a") + "  rules:\n" + rule("a.example.com", "Exact /x b:80"), "young", NEW),
        ingress(default("b"), "old", OLD),
        ingress(default("kubia"), "youngest", "2022-01-01T00:00:00Z"),
    )
    assert routes(site) == {"/": "b"}
    assert routes(site, "a.example.com") == {"/": "a", "= /x": "b"}
    [error] = errors
    assert "Ingress default/youngest" in str(error)
    assert "Ingress default/old is the default already" in str(error)


def test_of_two_with_one_host_and_path_the_older_has_it() -> None:
    young = ingress("  rules:\n" + rule("x.example.com", "Prefix /p b:80", "Prefix /q b:80"), "young", NEW)
    old = ingress("  rules:\n" + rule("x.example.com", "ImplementationSpecific /p/ a:80"), "old", OLD)
    site, errors = planned(young, old)
    assert routes(site, "x.example.com") == {"/": 404, "= /p": "a", "/p/": "a", "= /q": "b", "/q/": "b"}
    [error] = errors
    assert str(error) == (
        "web.yaml:11: Ingress default/young: spec.rules[0].http.paths[0]: /p of x.example.com"
        " is already that of Ingress default/old, which is older; that one is used"
    )


def test_a_path_twice_in_one_ingress() -> None:
    site, errors = planned(ingress("  rules:\n" + rule("", "Prefix /p a:80", "Prefix /p b:80")))
    assert routes(site)["/p/"] == "a"
    [error] = errors
    assert "/p of all hosts is already that of this Ingress itself" in str(error)


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ("gone:80", "Service default/gone does not exist"),
        ("kubia:81", "Service default/kubia has no TCP port 81; its ports: 80/TCP (http), 90/TCP (mux)"),
        ("kubia:nope", "Service default/kubia has no TCP port nope"),
        ("away:80", "Service default/away is an ExternalName"),
    ],
)
def test_a_backend_that_is_not_there_costs_only_its_path(backend: str, said: str) -> None:
    away = dataclasses.replace(service("away"), type=ServiceType.EXTERNAL_NAME)
    text = ingress("  rules:\n" + rule("", f"Prefix /bad {backend}", "Prefix / a:80"))
    site, errors = planned(text, services=(*SERVICES, away))
    assert routes(site) == {"/": "a", "= /bad": 503, "/bad/": 503}
    [error] = errors
    assert said in str(error)
    assert str(error).startswith(
        "web.yaml:11: Ingress default/web: spec.rules[0].http.paths[0].backend.service.name"
    )


def test_upstreams_are_the_ready_endpoints() -> None:
    text = ingress("  rules:\n" + rule("", "Prefix / kubia:mux"))
    slices = (
        endpoints("10.0.0.2", "10.0.0.1", port="mux", number=8090),
        endpoints("10.0.0.3", port="mux", number=8091),
        endpoints("10.0.0.4", port="mux", ready=False),
        endpoints("10.0.0.5", port="http"),
    )
    site, _ = planned(text, slices=slices)
    [upstream] = site.upstreams()
    assert upstream == Upstream("default.kubia.90", ("10.0.0.1:8090", "10.0.0.2:8090", "10.0.0.3:8091"))


def test_terminating_endpoints_serve_where_none_is_ready() -> None:
    text = ingress("  rules:\n" + rule("", "Prefix / a:80"))
    site, _ = planned(text, slices=(endpoints("10.0.0.4", of="a", ready=False),))
    assert site.upstreams() == [Upstream("default.a.80", ("10.0.0.4:8080",))]
    site, errors = planned(text, slices=())
    assert not errors
    assert site.upstreams() == []


@pytest.mark.parametrize(("first", "second"), [("10.66.0.9", "fd00:66::9"), ("fd00:66::9", "10.66.0.9")])
def test_an_endpoint_of_two_families_counts_once(first: str, second: str) -> None:
    both = (endpoints("10.0.0.1", of="a"), endpoints("fd00::1", of="a"))
    text = ingress("  rules:\n" + rule("", "Prefix / a:80"))
    site, _ = planned(text, services=(service("a", clusters=(first, second)),), slices=both)
    [upstream] = site.upstreams()
    assert upstream.sockets == (("10.0.0.1:8080",) if first == "10.66.0.9" else ("[fd00::1]:8080",))
    site, _ = planned(text, services=(service("a", clusters=(first,)),), slices=both[:1])
    assert site.upstreams()[0].sockets == ("10.0.0.1:8080",), "a family without endpoints does not count"


def test_certificates_by_host() -> None:
    tls = (
        "  tls:\n  - {hosts: [kubia.example.com], secretName: tls-secret}\n"
        "  - {hosts: ['*.example.com'], secretName: stars}\n"
    )
    hosts = "".join(rule(host, "Prefix / a:80") for host in ("kubia.example.com", "b.example.com", "c.org"))
    site, errors = planned(ingress(f"{tls}  rules:\n{hosts}"), secret(), secret("stars", "*.example.com"))
    assert not errors
    pems = {each.host: each.certificate for each in site.servers}
    assert pems["kubia.example.com"] != pems["b.example.com"] == pems["*.example.com"] != ""
    assert pems["c.org"] == pems[""] == ""
    site, errors = planned(ingress("  tls: [{secretName: stars}]\n  rules:\n" + hosts), secret("stars"))
    assert not errors
    assert len({each.certificate for each in site.servers}) == 1, "without hosts it is for all"


def test_a_missing_secret_costs_only_https() -> None:
    text = "  tls: [{hosts: [a.org], secretName: gone}]\n  rules:\n" + rule("a.org", "Prefix / a:80")
    site, errors = planned(ingress(text))
    assert routes(site, "a.org") == {"/": "a"}
    [error] = errors
    assert "spec.tls[0].secretName: Secret default/gone does not exist, or is not usable" in str(error)


def test_of_two_certificates_for_a_host_the_older_counts() -> None:
    def text(name: str, which: str, created: str) -> str:
        tls = f"  tls: [{{hosts: [a.org], secretName: {which}}}]\n  rules:\n"
        return ingress(tls + rule("a.org", f"Exact /{name} a:80"), name, created)

    content = good(secret("one"), secret("two", "b.org"))
    site, errors = planned(
        text("young", "one", NEW), text("old", "two", OLD), secret("one"), secret("two", "b.org")
    )
    [server] = [each for each in site.servers if each.host == "a.org"]
    assert server.certificate == content.certificates[ObjectKey("default", "two")].pem
    [error] = errors
    assert "Ingress default/young" in str(error)
    assert "a.org has the certificate of Ingress default/old already" in str(error)


def test_classes_choose_the_controller() -> None:
    rules = "  rules:\n" + rule("", "Prefix / a:80")
    content = good(
        ingress(rules, "none"),
        ingress("  ingressClassName: nginx\n" + rules, "own"),
        ingress("  ingressClassName: other\n" + rules, "other"),
        ingress("  ingressClassName: missing\n" + rules, "lost"),
    )
    classes = {"other": IngressClass("other", "example.com/other")}
    taken, errors = ours(content.ingresses.values(), classes)
    assert [each.key.name for each in taken] == ["none", "own"]
    [error] = errors
    assert "Ingress default/lost: spec.ingressClassName: 'missing' is no IngressClass" in str(error)
    for controller, names in (("example.com/other", ["own"]), (CONTROLLER, ["none", "other", "own"])):
        classes = {"other": IngressClass("other", controller, default=True)}
        taken, _ = ours(content.ingresses.values(), classes)
        assert [each.key.name for each in taken] == names


def test_the_order_of_what_is_given_does_not_count() -> None:
    text = ingress("  rules:\n" + rule("x.org", "Prefix /p b:80", "Prefix / a:80"))
    one, _ = planned(text)
    other, _ = planned(text, services=SERVICES[::-1], slices=SLICES[::-1])
    assert one == other
