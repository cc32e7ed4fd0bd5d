package wan

import (
	"encoding/binary"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

var (
	addrA = netip.MustParseAddr("10.99.0.1")
	addrB = netip.MustParseAddr("10.99.0.2")
)

// device is one whose far end the test holds.
type device struct {
	in  chan []byte
	out chan []byte
	end chan struct{}
}

func newDevice() *device {
	return &device{make(chan []byte, 64), make(chan []byte, 64), make(chan struct{})}
}

func (d *device) Read(b []byte) (int, error) {
	select {
	case p := <-d.in:
		return copy(b, p), nil
	case <-d.end:
		return 0, os.ErrClosed
	}
}

func (d *device) Write(b []byte) (int, error) { d.out <- append([]byte(nil), b...); return len(b), nil }
func (d *device) Close() error                { close(d.end); return nil }

func ipPacket(to netip.Addr, number uint32) []byte {
	b := make([]byte, 24)
	b[0] = 0x45
	a := to.As4()
	copy(b[16:], a[:])
	binary.BigEndian.PutUint32(b[20:], number)
	return b
}

func number(b []byte) uint32 { return binary.BigEndian.Uint32(b[20:]) }

func TestRelayCarriesCutsAndHeals(t *testing.T) {
	r := NewRelay(slog.New(slog.NewTextHandler(io.Discard, nil)))
	a, b := newDevice(), newDevice()
	r.Attach(addrA, a)
	r.Attach(addrB, b)

	a.in <- ipPacket(addrB, 1)
	if got := number(<-b.out); got != 1 {
		t.Fatalf("B received %d, want 1", got)
	}
	b.in <- ipPacket(addrA, 2)
	if got := number(<-a.out); got != 2 {
		t.Fatalf("A received %d, want 2", got)
	}
	// What is sent during a cut never comes; packet 6, sent after it, is the next one seen.
	r.Cut(addrB)
	a.in <- ipPacket(addrB, 3)
	a.in <- ipPacket(addrA, 4) // to itself: proves that 3 has been looked at
	if got := number(<-a.out); got != 4 {
		t.Fatalf("A received %d, want 4", got)
	}
	r.Heal()
	a.in <- []byte{0x60, 0, 0, 0} // not IPv4: not carried
	a.in <- ipPacket(addrB, 5)
	if got := number(<-b.out); got != 5 {
		t.Fatalf("B received %d after the cut, want 5", got)
	}
	r.Cut()
	if r.up(addrA, addrB) {
		t.Fatal("a cut without addresses leaves A and B connected")
	}
	r.Heal()
	if !r.up(addrA, addrB) {
		t.Fatal("healing without addresses leaves A and B cut")
	}
	if r.Carried(addrA) == 0 {
		t.Fatal("nothing counted for A")
	}
	r.Close()
}

func TestScheduleFollowsRateDelayAndQueue(t *testing.T) {
	var s schedule
	now := time.Unix(1000, 0)
	p := Params{Delay: 20 * time.Millisecond, BytesPerSecond: 1000, QueueBytes: 1500}
	half := func() float64 { return 0.5 }
	at, ok := s.put(now, 1000, p, half)
	if !ok || at.Sub(now) != time.Second+20*time.Millisecond {
		t.Fatalf("first packet: %v %v", at.Sub(now), ok)
	}
	at, ok = s.put(now, 1000, p, half)
	if !ok || at.Sub(now) != 2*time.Second+20*time.Millisecond {
		t.Fatalf("second packet queues behind the first: %v %v", at.Sub(now), ok)
	}
	if _, ok = s.put(now, 1000, p, half); ok {
		t.Fatal("a packet was queued beyond QueueBytes")
	}
	if _, ok = s.put(now, 1, Params{Loss: 1}, half); ok {
		t.Fatal("a packet survived total loss")
	}
}

func TestScheduleKeepsOrderUnderJitter(t *testing.T) {
	var s schedule
	now := time.Unix(1000, 0)
	draws := []float64{0.99, 0}
	p := Params{Delay: 10 * time.Millisecond, Jitter: 5 * time.Millisecond}
	var last time.Time
	for i, d := range draws {
		at, _ := s.put(now, 100, p, func() float64 { return d })
		if at.Before(last) {
			t.Fatalf("packet %d overtakes", i)
		}
		last = at
	}
}

func TestParseParams(t *testing.T) {
	p, err := ParseParams("delay=20ms jitter=2ms loss=0.01 rate=12500000 queue=1000")
	want := Params{20 * time.Millisecond, 2 * time.Millisecond, 0.01, 12.5e6, 1000}
	if err != nil || p != want {
		t.Fatalf("%+v, %v", p, err)
	}
	_, err = ParseParams("delay=x loss=2 colour=blue")
	for _, part := range []string{"delay=x", "loss 2", "colour=blue"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v does not name %q", err, part)
		}
	}
}
