# Declares a virtual service with one real server and lists the catalog.
#   apt-get install protobuf-compiler python3-grpcio python3-protobuf
#   protoc --proto_path proto --python_out . types.proto
import sys

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import UInt32Value

import types_pb2 as types

node = sys.argv[1] if len(sys.argv) > 1 else "localhost:4282"
channel = grpc.insecure_channel(node)


def call(method, request, answer=Empty):
    serialize = type(request).SerializeToString
    return channel.unary_unary("/types.Merlin/" + method, serialize, answer.FromString)(request)


call("CreateService", types.VirtualService(
    id="python",
    key=types.VirtualService.Key(ip="10.0.0.1", port=8081, protocol=types.TCP),
    config=types.VirtualService.Config(scheduler="wrr"),
))
call("CreateServer", types.RealServer(
    serviceID="python",
    key=types.RealServer.Key(ip="10.1.0.1", port=8081),
    config=types.RealServer.Config(weight=UInt32Value(value=1), forward=types.MASQ),
))
for item in call("List", Empty(), types.ListResponse).items:
    print(item.service.id, "has", len(item.servers), "real server(s)")
