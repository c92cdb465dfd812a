# Does everything a client of an earlier version did, through another protobuf implementation, and
# checks every answer such clients rely on. Prints one line per group of checks.
import sys

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue, UInt32Value

import earlier_pb2 as types

channel = grpc.insecure_channel(sys.argv[1])
Code = grpc.StatusCode
VS, RS = types.VirtualService, types.RealServer


def call(method, request, answer=Empty):
    serialize = type(request).SerializeToString
    stub = channel.unary_unary("/types.Merlin/" + method, serialize, answer.FromString)
    message = stub(request, timeout=10)
    # What came later is carried along, but an earlier client cannot see it.
    message.DiscardUnknownFields()
    return message


def refused(code, field, method, request):
    try:
        call(method, request)
    except grpc.RpcError as error:
        assert error.code() == code, f"{method} {request}: {error.code()}: {error.details()}"
        assert field in error.details(), f"{method} {request}: {error.details()} lacks {field}"
    else:
        raise AssertionError(f"{method} {request} was accepted")


def listed():
    return {item.service.id: item for item in call("List", Empty(), types.ListResponse).items}


def service(id="svc", key=VS.Key(ip="10.1.1.1", port=888, protocol=types.TCP),
            config=VS.Config(scheduler="wrr", flags=["flag-1", "flag-2"])):
    return VS(id=id, key=key, config=config)


def check(**fields):
    full = dict(endpoint=StringValue(value="http://:556/health"), period=Duration(seconds=5),
                timeout=Duration(seconds=1), up_threshold=2, down_threshold=1)
    full.update(fields)
    return RS.HealthCheck(**{name: value for name, value in full.items() if value is not None})


def server(serviceID="svc", key=RS.Key(ip="172.16.1.1", port=555),
           config=RS.Config(weight=UInt32Value(value=2), forward=types.MASQ), health_check=None):
    return RS(serviceID=serviceID, key=key, config=config, health_check=health_check)


# A new cluster has nothing.
assert not listed()

# Services: what is refused, by field.
key, config = VS.Key, VS.Config
for field, request in [
    ("id", service(id="")),
    ("key", service(key=None)),
    ("key.ip", service(key=key(port=1, protocol=types.TCP))),
    ("key.ip", service(key=key(ip="10.0.0", port=1, protocol=types.TCP))),
    ("key.port", service(key=key(ip="10.0.0.1", protocol=types.TCP))),
    ("key.port", service(key=key(ip="10.0.0.1", port=65536, protocol=types.TCP))),
    ("key.protocol", service(key=key(ip="10.0.0.1", port=1))),
    ("config", service(config=None)),
    ("config.scheduler", service(config=config(flags=["flag-1"]))),
    ("config.scheduler", service(config=config(scheduler="fastest"))),
    ("config.flags", service(config=config(scheduler="wrr", flags=["flag-9"]))),
]:
    refused(Code.INVALID_ARGUMENT, field, "CreateService", request)
assert not listed()
print("services: refusals name their field")

# Services: create, again, update, merge, replace flags.
call("CreateService", service())
refused(Code.ALREADY_EXISTS, "svc", "CreateService", service())
refused(Code.ALREADY_EXISTS, "svc", "CreateService", service(id="other"))
assert listed()["svc"].service == service()
refused(Code.NOT_FOUND, "nobody", "UpdateService", VS(id="nobody", config=config(scheduler="rr")))
call("UpdateService", VS(id="svc", config=config(scheduler="sh")))
assert listed()["svc"].service.config == config(scheduler="sh", flags=["flag-1", "flag-2"])
call("UpdateService", VS(id="svc", config=config(flags=["flag-3"])))
assert listed()["svc"].service.config == config(scheduler="sh", flags=["flag-3"])
print("services: updates merge")

# Servers: what is refused, by field.
rkey, rconfig, weight = RS.Key, RS.Config, UInt32Value(value=1)
for field, request in [
    ("serviceID", server(serviceID="")),
    ("key", server(key=None)),
    ("key.ip", server(key=rkey(port=1))),
    ("key.ip", server(key=rkey(ip="x", port=1))),
    ("key.port", server(key=rkey(ip="10.0.0.1"))),
    ("key.port", server(key=rkey(ip="10.0.0.1", port=70000))),
    ("config", server(config=None)),
    ("config.forward", server(config=rconfig(weight=weight))),
    ("config.weight", server(config=rconfig(forward=types.MASQ))),
    ("health_check.endpoint", server(health_check=check(endpoint=StringValue(value="ftp://:1/")))),
    ("health_check.endpoint", server(health_check=check(endpoint=StringValue(value="http:///x")))),
    ("health_check.period", server(health_check=check(period=None))),
    ("health_check.timeout", server(health_check=check(timeout=None))),
    ("health_check.timeout", server(health_check=check(timeout=Duration(nanos=-1)))),
    ("health_check.up_threshold", server(health_check=check(up_threshold=0))),
    ("health_check.down_threshold", server(health_check=check(down_threshold=0))),
]:
    refused(Code.INVALID_ARGUMENT, field, "CreateServer", request)
refused(Code.NOT_FOUND, "nobody", "CreateServer", server(serviceID="nobody"))
print("servers: refusals name their field")

# Servers: create, again, update, merge.
call("CreateServer", server())
refused(Code.ALREADY_EXISTS, "172.16.1.1:555", "CreateServer", server())
[got] = listed()["svc"].servers
assert got == server(health_check=RS.HealthCheck()), got
assert got.HasField("health_check"), "a server without a check lists an empty one"
call("UpdateServer", server(config=rconfig(weight=UInt32Value(value=0))))
[got] = listed()["svc"].servers
assert got.config == rconfig(weight=UInt32Value(value=0), forward=types.MASQ), got
call("UpdateServer", server(config=rconfig(forward=types.ROUTE), health_check=check()))
[got] = listed()["svc"].servers
assert got.config == rconfig(weight=UInt32Value(value=0), forward=types.ROUTE), got
assert got.health_check == check(), got
call("UpdateServer", server(config=None, health_check=RS.HealthCheck(up_threshold=7)))
[got] = listed()["svc"].servers
assert got.health_check == check(up_threshold=7), got
call("UpdateServer", server(config=None, health_check=RS.HealthCheck(endpoint=StringValue())))
[got] = listed()["svc"].servers
assert not got.health_check.endpoint.value and got.health_check.up_threshold == 7, got
refused(Code.NOT_FOUND, "", "UpdateServer", RS(serviceID="svc", config=rconfig(weight=weight)))
refused(Code.NOT_FOUND, "10.9.9.9", "UpdateServer", server(key=rkey(ip="10.9.9.9", port=1)))
refused(Code.NOT_FOUND, "nobody", "UpdateServer", server(serviceID="nobody"))
print("servers: updates merge")

# Deleting: servers one by one, and with their service.
call("CreateServer", server(key=rkey(ip="172.16.1.2", port=555), health_check=check()))
call("DeleteServer", RS(serviceID="svc", key=rkey(ip="172.16.1.1", port=555)))
assert [s.key.ip for s in listed()["svc"].servers] == ["172.16.1.2"]
# A service whose name is the beginning of another's has its own servers only.
call("CreateService", service(id="svc2", key=key(ip="10.1.1.2", port=888, protocol=types.UDP)))
call("CreateServer", server(serviceID="svc2"))
assert [s.key.ip for s in listed()["svc"].servers] == ["172.16.1.2"]
call("DeleteService", StringValue(value="svc"))
assert list(listed()) == ["svc2"]
call("CreateService", service())
assert not listed()["svc"].servers, "a deleted service's servers must not come back"
for id in ["svc", "svc2", "svc"]:
    call("DeleteService", StringValue(value=id))
assert not listed()
print("deletion: cascades, and can be repeated")
