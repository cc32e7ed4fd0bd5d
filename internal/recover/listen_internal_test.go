package recover

import (
	"net"
	"os"
	"slices"
	"testing"

	"lifeboat/internal/engine"
	"lifeboat/internal/plan"
)

func TestListening(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	all, err := net.Listen("tcp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	udp, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	found := func(ports []plan.Port, a net.Addr) *plan.Port {
		var proto string
		var number int
		switch a := a.(type) {
		case *net.TCPAddr:
			proto, number = "tcp", a.Port
		case *net.UDPAddr:
			proto, number = "udp", a.Port
		}
		i := slices.IndexFunc(ports, func(p plan.Port) bool { return p.Proto == proto && int(p.Port) == number })
		if i < 0 {
			return nil
		}
		return &ports[i]
	}
	ports := listening(os.Getpid(), nil, nobodys)
	if p := found(ports, tcp.Addr()); p == nil || p.IP.String() != "127.0.0.1" {
		t.Errorf("TCP on loopback: %+v", p)
	}
	if p := found(ports, all.Addr()); p == nil || p.IP.IsValid() {
		t.Errorf("TCP on all addresses: %+v, want no address: it takes both families", p)
	}
	if p := found(ports, udp.LocalAddr()); p == nil {
		t.Error("UDP is not listed")
	}
	number := uint16(tcp.Addr().(*net.TCPAddr).Port)
	published := []engine.InventoryContainer{{Name: "web", State: "running", Ports: []engine.PublishedPort{{Proto: "tcp", Port: number}}}}
	if p := found(listening(os.Getpid(), published, nobodys), tcp.Addr()); p != nil {
		t.Errorf("a port that a container publishes is listed as a process's: %+v", p)
	}
	// The engine holds the port of a container before it calls it running.
	published[0].State = "exited"
	if p := found(listening(os.Getpid(), published, nobodys), tcp.Addr()); p == nil {
		t.Error("a port that somebody's stopped container asks for passes for its own")
	}
	if p := found(listening(os.Getpid(), published, func(name string) bool { return name == "web" }), tcp.Addr()); p != nil {
		t.Errorf("the port of a container of the system that is being started is listed: %+v", p)
	}
}

func nobodys(string) bool { return false }
