// Package wan emulates a wide area network between the sites of a laboratory: a relay of IP packets
// between TUN devices, one in each site's network namespace, with delay, jitter, loss, rate and cuts.
// It exists because queueing disciplines that delay are not in every kernel.
//
// Main types: [Relay] and [Params]. The package opens devices ([OpenTUN]) but does not address them,
// and knows nothing of namespaces: a device belongs to the namespace of the thread that opened it.
package wan

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultQueueBytes is how much may wait for the wire in one direction when Params.QueueBytes is zero.
const DefaultQueueBytes = 1 << 20

// Params shapes one direction of a site's link; every link has the same in each direction.
type Params struct {
	Delay  time.Duration `json:"delay"`  // one way
	Jitter time.Duration `json:"jitter"` // at most this much is added to or taken from Delay; order is kept
	Loss   float64       `json:"loss"`   // share of packets dropped, 0 to 1
	// BytesPerSecond is the rate of the wire; zero is unlimited.
	BytesPerSecond float64 `json:"bytes_per_second"`
	// QueueBytes is how much may wait for a wire that is busy before packets are dropped; zero means DefaultQueueBytes.
	QueueBytes int `json:"queue_bytes"`
}

// ParseParams reads "delay=20ms jitter=2ms loss=0.01 rate=12500000 queue=1000000" (rate in bytes per
// second, queue in bytes); every part is optional. All problems are reported at once.
func ParseParams(s string) (Params, error) {
	var p Params
	var errs []error
	for _, field := range strings.Fields(s) {
		key, value, _ := strings.Cut(field, "=")
		var err error
		switch key {
		case "delay":
			p.Delay, err = time.ParseDuration(value)
		case "jitter":
			p.Jitter, err = time.ParseDuration(value)
		case "loss":
			p.Loss, err = strconv.ParseFloat(value, 64)
		case "rate":
			p.BytesPerSecond, err = strconv.ParseFloat(value, 64)
		case "queue":
			p.QueueBytes, err = strconv.Atoi(value)
		default:
			err = errors.New("unknown parameter; known are delay, jitter, loss, rate, queue")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("parse %q: %w", field, err))
		}
	}
	errs = append(errs, p.Validate())
	return p, errors.Join(errs...)
}

// Validate reports every value that a wire cannot have.
func (p Params) Validate() error {
	var errs []error
	if p.Delay < 0 || p.Jitter < 0 {
		errs = append(errs, errors.New("delay and jitter must not be negative"))
	}
	if !(p.Loss >= 0 && p.Loss <= 1) {
		errs = append(errs, fmt.Errorf("loss %v is not between 0 and 1", p.Loss))
	}
	if !(p.BytesPerSecond >= 0) || p.QueueBytes < 0 {
		errs = append(errs, errors.New("rate and queue must not be negative"))
	}
	return errors.Join(errs...)
}

// Relay carries packets between ports. It is safe for concurrent use.
type Relay struct {
	log    *slog.Logger
	params atomic.Pointer[Params]

	mu    sync.RWMutex
	ports map[netip.Addr]*port
	cut   map[netip.Addr]bool
	all   bool // everything is cut
	busy  sync.WaitGroup
}

type port struct {
	addr netip.Addr
	dev  io.ReadWriteCloser
	line chan packet // packets on their way from this port
	sent atomic.Uint64
}

type packet struct {
	buf *[]byte
	n   int
	to  netip.Addr
	at  time.Time // when it arrives
}

// NewRelay makes a relay with no ports and an ideal wire.
func NewRelay(log *slog.Logger) *Relay {
	r := &Relay{log: log, ports: map[netip.Addr]*port{}, cut: map[netip.Addr]bool{}}
	r.params.Store(&Params{})
	return r
}

// Set changes the wire for packets that are sent from now on.
func (r *Relay) Set(p Params) error {
	if err := p.Validate(); err != nil {
		return fmt.Errorf("set WAN: %w", err)
	}
	r.params.Store(&p)
	return nil
}

// Params returns what was last set.
func (r *Relay) Params() Params { return *r.params.Load() }

// Cut makes packets from and to the addresses vanish, without any address those of everybody. As with
// a real cut nobody is told: connections hang.
func (r *Relay) Cut(addrs ...netip.Addr) { r.setCut(true, addrs) }

// Heal ends cuts: of the addresses, or without any address all of them.
func (r *Relay) Heal(addrs ...netip.Addr) { r.setCut(false, addrs) }

func (r *Relay) setCut(down bool, addrs []netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(addrs) == 0 {
		r.all = down
		clear(r.cut)
	}
	for _, a := range addrs {
		r.cut[a] = down
	}
}

// Carried is the number of bytes of IP packets that came from the address and were put on the wire
// since it was attached (again).
func (r *Relay) Carried(addr netip.Addr) uint64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if p := r.ports[addr]; p != nil {
		return p.sent.Load()
	}
	return 0
}

// Attach plugs a device in under an address and takes it over: it is closed by Detach. What was
// attached under the address before is detached.
func (r *Relay) Attach(addr netip.Addr, dev io.ReadWriteCloser) {
	r.Detach(addr)
	p := &port{addr: addr, dev: dev, line: make(chan packet, 1<<15)}
	r.mu.Lock()
	r.ports[addr] = p
	r.mu.Unlock()
	r.busy.Add(2)
	go func() { defer r.busy.Done(); r.deliver(p) }()
	go func() { defer r.busy.Done(); defer close(p.line); r.collect(p) }()
}

// Detach unplugs and closes the device at the address, if there is one. Packets on their way are lost.
func (r *Relay) Detach(addr netip.Addr) {
	r.mu.Lock()
	p := r.ports[addr]
	delete(r.ports, addr)
	r.mu.Unlock()
	if p != nil {
		p.dev.Close()
	}
}

// Close detaches everything and waits until no goroutine of the relay is left.
func (r *Relay) Close() {
	r.mu.Lock()
	ports := r.ports
	r.ports = map[netip.Addr]*port{}
	r.mu.Unlock()
	for _, p := range ports {
		p.dev.Close()
	}
	r.busy.Wait()
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 1<<16); return &b }}

// collect reads what a port sends, decides its fate and puts it on the line.
func (r *Relay) collect(p *port) {
	var wire schedule
	for {
		buf := buffers.Get().(*[]byte)
		n, err := p.dev.Read(*buf)
		if err != nil {
			buffers.Put(buf)
			if !errors.Is(err, os.ErrClosed) && !errors.Is(err, io.EOF) {
				r.log.Warn("WAN port ends", "site_ip", p.addr, "error", err)
			}
			return
		}
		to, ok := destination((*buf)[:n])
		if !ok || !r.up(p.addr, to) {
			buffers.Put(buf)
			continue
		}
		at, ok := wire.put(time.Now(), n, *r.params.Load(), rand.Float64)
		if !ok {
			buffers.Put(buf)
			continue
		}
		p.sent.Add(uint64(n))
		select {
		case p.line <- packet{buf, n, to, at}:
		default: // more packets in flight than anybody's network holds
			buffers.Put(buf)
		}
	}
}

// deliver hands packets over when they have arrived. A cut also takes those that are under way.
func (r *Relay) deliver(p *port) {
	for pkt := range p.line {
		if d := time.Until(pkt.at); d > 0 {
			time.Sleep(d)
		}
		if r.up(p.addr, pkt.to) {
			r.mu.RLock()
			dest := r.ports[pkt.to]
			r.mu.RUnlock()
			if dest != nil {
				// A closed or full device loses the packet, as a host that is down does.
				_, _ = dest.dev.Write((*pkt.buf)[:pkt.n])
			}
		}
		buffers.Put(pkt.buf)
	}
}

func (r *Relay) up(a, b netip.Addr) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return !r.all && !r.cut[a] && !r.cut[b]
}

// destination is the destination address of an IPv4 packet; others are not carried.
func destination(b []byte) (netip.Addr, bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom4([4]byte(b[16:20])), true
}

// schedule is the wire of one direction: when it is free again and when the last packet arrives.
type schedule struct {
	free, last time.Time
}

// put decides when a packet of n bytes sent now arrives, or that it is lost. random gives numbers in [0, 1).
func (s *schedule) put(now time.Time, n int, p Params, random func() float64) (time.Time, bool) {
	if p.Loss > 0 && random() < p.Loss {
		return time.Time{}, false
	}
	if s.free.Before(now) {
		s.free = now
	}
	if p.BytesPerSecond > 0 {
		queue := p.QueueBytes
		if queue == 0 {
			queue = DefaultQueueBytes
		}
		if s.free.Sub(now).Seconds()*p.BytesPerSecond > float64(queue) {
			return time.Time{}, false
		}
		s.free = s.free.Add(time.Duration(float64(n) / p.BytesPerSecond * float64(time.Second)))
	}
	at := s.free.Add(p.Delay)
	if p.Jitter > 0 {
		at = at.Add(time.Duration((random()*2 - 1) * float64(p.Jitter)))
	}
	if at.Before(s.last) { // jitter does not reorder
		at = s.last
	}
	s.last = at
	return at, true
}
