"""The Hub's own switches for a test in another process: its log and its faults."""

from dataclasses import asdict

from alpharl_hub.local_hub.faults import Fault
from alpharl_hub.local_hub.messages import HubError, Request, Response, json_response
from alpharl_hub.local_hub.state import HubState, Names


def read_log(hub: HubState, request: Request, names: Names) -> Response:
    """GET /local-hub/log"""
    return json_response([asdict(record) for record in hub.log.records()])


def clear_log(hub: HubState, request: Request, names: Names) -> Response:
    """DELETE /local-hub/log"""
    hub.log.clear()
    return json_response({})


def read_faults(hub: HubState, request: Request, names: Names) -> Response:
    """GET /local-hub/faults: those still to come"""
    return json_response([asdict(fault) for fault in hub.faults.pending()])


def add_fault(hub: HubState, request: Request, names: Names) -> Response:
    """POST /local-hub/faults: the fields of one `Fault`"""
    asked = request.json()
    headers = tuple((str(name), str(value)) for name, value in asked.pop("headers", ()))
    try:
        hub.faults.add(Fault(**asked, headers=headers))
    except TypeError as error:
        raise HubError(400, f"Not a fault: {error}") from error
    return json_response({})


def clear_faults(hub: HubState, request: Request, names: Names) -> Response:
    """DELETE /local-hub/faults"""
    hub.faults.clear()
    return json_response({})
