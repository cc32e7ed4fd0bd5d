package freeze

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Parent and guardian speak in packets over a SOCK_SEQPACKET socket pair, so a
// message arrives whole or not at all and the death of either end is an end of
// file. Each packet is 32 bytes: magic, kind, zeros, session, value. The first
// one, setup, is followed by a JSON document.
//
//	parent                         guardian
//	setup  ----------------------> opens the engine if need be, locks memory
//	       <---------------------- ready (value: what it could not do)
//	arm (value: deadline) -------> sets its timer
//	       <---------------------- armed
//	... freezes ...
//	frozen ----------------------> still there?
//	       <---------------------- guarded
//	... secures the bytes, thaws, verifies ...
//	release ---------------------> looks itself whether all is thawed
//	       <---------------------- held
//
// Unasked, the guardian sends broken (value: why) when it has thawed by itself.
type kind uint8

const (
	kindSetup kind = iota + 1
	kindReady
	kindArm
	kindArmed
	kindFrozen
	kindGuarded
	kindRelease
	kindHeld
	kindBroken
	kindLast
)

// reason is why a guardian thawed by itself, or could not begin.
type reason int64

const (
	reasonDeadline reason = iota + 1
	reasonParentGone
	reasonGarbled
	reasonNotThawed
	reasonPauser
	reasonTimer
)

func (r reason) String() string {
	switch r {
	case reasonDeadline:
		return "freeze_max passed"
	case reasonParentGone:
		return "the process that froze is gone"
	case reasonGarbled:
		return "garbled message"
	case reasonNotThawed:
		return "a container was still frozen at the release"
	case reasonPauser:
		return "the guardian cannot reach the container engine"
	case reasonTimer:
		return "the guardian has no timer"
	}
	return fmt.Sprintf("reason %d", int64(r))
}

// limit is what a guardian had to do without; it guards nevertheless.
type limit int64

const (
	// limitMemory: memory is not locked. If the file system that holds the
	// binary hangs, the guardian may hang with it.
	limitMemory limit = 1 << iota
	// limitPriority: ordinary scheduling priority.
	limitPriority
)

const (
	messageSize = 32
	maxSetup    = 128 << 10 // what fits into a default socket buffer
)

var magic = [4]byte{'L', 'B', 'G', '1'}

// session ties the packets of one freeze together.
type session [16]byte

type message struct {
	kind    kind
	session session
	value   int64
}

var errGarbled = errors.New("garbled message")

func (m message) encode() []byte {
	b := make([]byte, messageSize)
	copy(b, magic[:])
	b[4] = byte(m.kind)
	copy(b[8:24], m.session[:])
	binary.BigEndian.PutUint64(b[24:], uint64(m.value))
	return b
}

// decodeMessage reads one packet; anything but exactly one message is garbled.
func decodeMessage(b []byte) (message, error) {
	if len(b) != messageSize || !bytes.Equal(b[:4], magic[:]) || !bytes.Equal(b[5:8], []byte{0, 0, 0}) {
		return message{}, errGarbled
	}
	m := message{kind: kind(b[4]), value: int64(binary.BigEndian.Uint64(b[24:]))}
	copy(m.session[:], b[8:24])
	if m.kind == 0 || m.kind >= kindLast {
		return message{}, errGarbled
	}
	return m, nil
}

// setup tells the guardian what its inherited files are: for each version, in
// this order, a control and a status file (see freezer).
type setup struct {
	Versions []int    `json:"versions"`
	Paused   []string `json:"paused,omitempty"`
	Pauser   string   `json:"pauser,omitempty"`
}

func (s setup) encode(id session) ([]byte, error) {
	doc, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode setup: %w", err)
	}
	b := append(message{kind: kindSetup, session: id}.encode(), doc...)
	if len(b) > maxSetup {
		return nil, fmt.Errorf("%d containers are too many for one guardian", len(s.Versions)+len(s.Paused))
	}
	return b, nil
}

func decodeSetup(b []byte) (setup, session, error) {
	if len(b) < messageSize || len(b) > maxSetup {
		return setup{}, session{}, errGarbled
	}
	m, err := decodeMessage(b[:messageSize])
	if err != nil || m.kind != kindSetup {
		return setup{}, session{}, errGarbled
	}
	var s setup
	d := json.NewDecoder(bytes.NewReader(b[messageSize:]))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return setup{}, session{}, fmt.Errorf("%w: %w", errGarbled, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return setup{}, session{}, errGarbled
	}
	for _, v := range s.Versions {
		if v != 1 && v != 2 {
			return setup{}, session{}, errGarbled
		}
	}
	return s, m.session, nil
}

// phase is where a guardian stands.
type phase uint8

const (
	phaseReady  phase = iota // nothing is frozen yet
	phaseArmed               // from here on something may be frozen
	phaseFrozen              // all is frozen
	phaseSpent               // it thawed by itself; waits for its parent to end
	phaseDone
)

// event is what a guardian can meet.
type event uint8

const (
	eventArm event = iota
	eventFrozen
	eventRelease
	eventGarbled  // undecodable, of another session, or out of turn
	eventDeadline // freeze_max passed
	eventGone     // the parent's end of the socket is closed: it is dead
)

// action is what a guardian does about it.
type action uint8

const (
	doNothing action = iota
	doArm            // set the timer, answer armed
	doAnswer         // answer guarded
	doConfirm        // verify that all is thawed, answer held, else thaw and say broken
	doThaw           // thaw until verified, say broken
)

// next is the guardian's whole decision, without I/O. A spent guardian stays
// until its parent ends, because a parent that was stopped in the middle of
// freezing may write to a freezer once more when it goes on.
func (p phase) next(e event) (phase, action) {
	switch e {
	case eventGone:
		if p == phaseReady || p == phaseDone {
			return phaseDone, doNothing
		}
		return phaseDone, doThaw
	case eventDeadline:
		if p == phaseArmed || p == phaseFrozen {
			return phaseSpent, doThaw
		}
		return p, doNothing
	}
	switch {
	case p == phaseReady && e == eventArm:
		return phaseArmed, doArm
	case p == phaseArmed && e == eventFrozen:
		return phaseFrozen, doAnswer
	case (p == phaseReady || p == phaseArmed || p == phaseFrozen) && e == eventRelease:
		return phaseDone, doConfirm
	case p == phaseDone:
		return phaseDone, doNothing
	}
	return phaseSpent, doThaw
}
