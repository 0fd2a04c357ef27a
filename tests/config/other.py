"""A program in another language, with nothing but its standard library, on the keys of a plain cache.

    other.py redis PORT get KEY
    other.py redis PORT set KEY TTL VALUE
    other.py memcached PORT get KEY
    other.py memcached PORT set KEY TTL VALUE
"""

import json
import socket
import sys


class Redis:
    def __init__(self, port):
        self.file = socket.create_connection(("127.0.0.1", port)).makefile("rwb")

    def command(self, *parts):
        self.file.write(b"*%d\r\n" % len(parts))
        for part in parts:
            self.file.write(b"$%d\r\n%s\r\n" % (len(part), part))
        self.file.flush()
        kind, rest = self.file.read(1), self.file.readline().strip()
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        if kind != b"+":
            raise RuntimeError(kind + rest)
        return rest

    def get(self, key):
        return self.command(b"GET", key)

    def set(self, key, ttl, value):
        self.command(b"SET", key, value, b"EX", ttl)


class Memcached:
    def __init__(self, port):
        self.file = socket.create_connection(("127.0.0.1", port)).makefile("rwb")

    def send(self, data):
        self.file.write(data)
        self.file.flush()
        return self.file.readline().split()

    def get(self, key):
        reply = self.send(b"get %s\r\n" % key)
        if reply == [b"END"]:
            return None
        value = self.file.read(int(reply[3]) + 2)[:-2]
        self.file.readline()
        return value

    def set(self, key, ttl, value):
        reply = self.send(b"set %s 0 %s %d\r\n%s\r\n" % (key, ttl, len(value), value))
        if reply != [b"STORED"]:
            raise RuntimeError(reply)


store = {"redis": Redis, "memcached": Memcached}[sys.argv[1]](int(sys.argv[2]))
key = sys.argv[4].encode()
if sys.argv[3] == "get":
    value = store.get(key)
    # Through the language's own JSON and back: it is a value there, not bytes.
    print("nothing" if value is None else json.dumps(json.loads(value), sort_keys=True))
else:
    store.set(key, sys.argv[5].encode(), json.dumps(json.loads(sys.argv[6])).encode())
