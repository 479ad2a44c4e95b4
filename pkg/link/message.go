package link

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"reflect"
	"time"
)

// MaxMessage is the largest message, header included, in bytes.
const MaxMessage = 32 << 10

const headerSize = 24

const flagIgnorable = 1

// Message is what travels on a Channel.
type Message struct {
	Epoch uint64
	Seq   uint64
	Body  Body // nil: of a kind unknown here that may be skipped
	FD    int  // a descriptor that came along, the receiver's to close; -1: none
}

// Body is the closed set of what can be said; the package doc lists it.
type Body interface{ kind() kind }

type kind uint16

const (
	kindHello kind = iota + 1
	kindReady
	kindDraining
	kindFailed
	kindAccept
	kindRearm
	kindDrain
	kindStop
	kindLogLevel
	kindPaused
	kindGather
	kindGathered
	kindReadiness
	kindHanded
	kindPeer
	kindPeerGone
	kindKept
	kindAdopt
)

// Hello is a worker's first message. The descriptor that comes along is the
// sending end of its inbox, a SOCK_SEQPACKET socket, for its peers.
type Hello struct {
	Contract    int    `json:"contract"` // that is spoken, as in the Identity
	Incarnation uint64 `json:"incarnation"`
	Generation  uint64 `json:"generation"`
	Build       string `json:"build"` // what was built, for people: version and VCS revision
}

// Kept says whether the worker's connections outlive it, as its second
// message if Identity.Keeper is set. The descriptor that comes along is its
// keeper's pidfd.
type Kept struct {
	PID    int    `json:"pid"`              // the keeper's; 0: there is none
	Reason string `json:"reason,omitempty"` // why there is none
}

// Ready says that OnWorkerStart has returned and the worker could serve.
type Ready struct{}

// Draining says that the worker has left its listeners: nothing waits for it
// there any more.
type Draining struct {
	Connections int `json:"connections"` // still open
}

// Handed says that a worker which drains has handed over what it could: the
// connections that are left are finished here.
type Handed struct {
	Given   int           `json:"given"`   // connections that another worker has taken
	Left    int           `json:"left"`    // that could not move, or were refused
	Longest time.Duration `json:"longest"` // the longest time for which one stood still
}

// Peer says that another worker is there, or that it has changed. When it is
// told for the first time, the sending end of that worker's inbox comes along.
// One without a pool and a seat is the supervisor's harvester, which gives the
// connections of dead workers and takes none.
type Peer struct {
	Incarnation uint64 `json:"incarnation"`
	Pool        string `json:"pool"`
	Slot        int    `json:"slot"`
	Generation  uint64 `json:"generation"`
	Seat        int    `json:"seat"`
	// Serving says that it may be given connections: it was told to accept,
	// and neither hangs nor drains.
	Serving bool `json:"serving"`
}

// PeerGone says that a worker is dead: what it was offered and has not
// taken, it never will.
type PeerGone struct {
	Incarnation uint64 `json:"incarnation"`
}

// Failed says why a worker is about to exit by itself.
type Failed struct {
	Reason string `json:"reason"`
}

// Paused says that the worker cannot accept on a listener for a while, so
// that others are to be woken for what waits there.
type Paused struct {
	Listener string `json:"listener"`
	Reason   string `json:"reason"`
}

// Gather asks a worker for something that only it knows. It answers with
// Gathered.
type Gather struct {
	ID   uint64          `json:"id"`   // of the question, comes back in the answer
	What string          `json:"what"` // which of the things that a worker can tell
	Arg  json.RawMessage `json:"arg,omitempty"`
}

// Legacy is the ID of an answer that nobody has asked for: what a worker that
// exits in order leaves behind, the last state of its metrics.
const Legacy = 0

// Gathered answers a Gather. The answer itself is in a memfd that comes
// along, unless there is an error.
type Gathered struct {
	ID    uint64 `json:"id"` // the question's, or Legacy
	Error string `json:"error,omitempty"`
}

// MoveRequest is the argument of the question "move": the worker hands over
// one connection and answers with a GiveResult.
type MoveRequest struct {
	Conn uint64 `json:"conn"`
	To   uint64 `json:"to"` // incarnation
}

// GiveRequest is the argument of the question "give": the worker hands over
// up to Count connections, to the incarnations in turn, and answers with a
// GiveResult.
type GiveRequest struct {
	Count int      `json:"count"`
	To    []uint64 `json:"to"`
}

// GiveResult is what came of a MoveRequest or GiveRequest.
type GiveResult struct {
	Given   int           `json:"given"`
	Thawed  int           `json:"thawed"`  // that stay, for whatever reason
	Refused int           `json:"refused"` // of those, by the taker's word
	Longest time.Duration `json:"longest_ns"`
}

// Readiness says that the application of a worker that serves wants no new
// connections, or wants them again.
type Readiness struct {
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"` // why not, in the application's words
}

// Adopt says that a new supervisor has taken over, whose epoch is the
// message's. The worker answers with Hello, without its inbox, and with what it
// has said before and still holds: Draining, Readiness.
type Adopt struct {
	// Living are the incarnations that are there, the worker itself and the
	// harvester included: other peers that it knows are dead.
	Living []uint64 `json:"living"`
}

// Accept tells a ready worker to take connections.
type Accept struct{}

// Rearm tells a worker to watch its listeners anew, because a wake-up may
// have gone to one that cannot answer it any more.
type Rearm struct{}

// Drain tells a worker to accept no more, finish what is open, and exit.
type Drain struct {
	// Prompt: connections are closed as soon as they are between two
	// messages. Otherwise they are served until their peers leave or the
	// grace is over.
	Prompt bool `json:"prompt"`
	// Grace is the time after which what is still open is closed.
	Grace time.Duration `json:"grace"`
	// Stays: the service does not end, so that peers are told to come back.
	// Without it, a prompt drain that hands nothing over is a stop.
	Stays bool `json:"stays,omitempty"`
	// Hand says that the connections are to be handed over first; those that
	// cannot be are drained.
	Hand bool `json:"hand,omitempty"`
	// To is the incarnation that gets them; 0: they are spread over the
	// peers of this pool that serve.
	To uint64 `json:"to,omitempty"`
	// Restart says that it is because the service was restarted, which those
	// who take the connections are told. A worker that does not know it skips
	// it, and has them told of a reload.
	Restart bool `json:"restart,omitempty"`
}

// Stop tells a worker to end its grace now: close everything in order and
// exit.
type Stop struct{}

// LogLevel tells a worker to log from this level on.
type LogLevel struct {
	Level string `json:"level"` // debug, info, warn, error
}

func (Hello) kind() kind     { return kindHello }
func (Ready) kind() kind     { return kindReady }
func (Draining) kind() kind  { return kindDraining }
func (Failed) kind() kind    { return kindFailed }
func (Accept) kind() kind    { return kindAccept }
func (Rearm) kind() kind     { return kindRearm }
func (Drain) kind() kind     { return kindDrain }
func (Stop) kind() kind      { return kindStop }
func (LogLevel) kind() kind  { return kindLogLevel }
func (Paused) kind() kind    { return kindPaused }
func (Gather) kind() kind    { return kindGather }
func (Gathered) kind() kind  { return kindGathered }
func (Readiness) kind() kind { return kindReadiness }
func (Handed) kind() kind    { return kindHanded }
func (Peer) kind() kind      { return kindPeer }
func (PeerGone) kind() kind  { return kindPeerGone }
func (Kept) kind() kind      { return kindKept }
func (Adopt) kind() kind     { return kindAdopt }

// maxReason bounds the reasons of Failed, Readiness and Kept so that a message always fits; JSON may
// write a byte as six.
const maxReason = 4096

// Encode returns m as it stands on the wire. It fails if m has no body, or
// if the message would be over MaxMessage. A longer reason of Failed,
// Readiness or Kept is cut.
func Encode(m Message) ([]byte, error) {
	if m.Body == nil {
		return nil, fmt.Errorf("link: message without a body")
	}
	switch b := m.Body.(type) {
	case Failed:
		b.Reason = b.Reason[:min(len(b.Reason), maxReason)]
		m.Body = b
	case Readiness:
		b.Reason = b.Reason[:min(len(b.Reason), maxReason)]
		m.Body = b
	case Kept:
		b.Reason = b.Reason[:min(len(b.Reason), maxReason)]
		m.Body = b
	}
	body, err := json.Marshal(m.Body)
	if err != nil {
		return nil, fmt.Errorf("link: %T: %w", m.Body, err)
	}
	if headerSize+len(body) > MaxMessage {
		return nil, fmt.Errorf("link: %T: %d bytes, want at most %d", m.Body, headerSize+len(body), MaxMessage)
	}
	b := make([]byte, headerSize, headerSize+len(body))
	binary.LittleEndian.PutUint16(b[0:], uint16(m.Body.kind()))
	binary.LittleEndian.PutUint16(b[2:], 0)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(body)))
	binary.LittleEndian.PutUint64(b[8:], m.Epoch)
	binary.LittleEndian.PutUint64(b[16:], m.Seq)
	return append(b, body...), nil
}

// Decode reads one message. It fails if b is too short, if the length is not
// that of the rest, if the body is not the kind's, or if the kind is unknown
// and must not be skipped. An unknown kind that may be skipped gives a
// Message without Body. FD is -1.
func Decode(b []byte) (Message, error) {
	if len(b) < headerSize {
		return Message{}, fmt.Errorf("link: message of %d bytes, want at least %d", len(b), headerSize)
	}
	k := kind(binary.LittleEndian.Uint16(b[0:]))
	flags := binary.LittleEndian.Uint16(b[2:])
	m := Message{Epoch: binary.LittleEndian.Uint64(b[8:]), Seq: binary.LittleEndian.Uint64(b[16:]), FD: -1}
	if n := binary.LittleEndian.Uint32(b[4:]); uint64(n) != uint64(len(b)-headerSize) {
		return Message{}, fmt.Errorf("link: message of kind %d: body of %d bytes, header says %d", k, len(b)-headerSize, n)
	}
	var err error
	body := b[headerSize:]
	switch k {
	case kindHello:
		m.Body, err = decode[Hello](body)
	case kindReady:
		m.Body, err = decode[Ready](body)
	case kindDraining:
		m.Body, err = decode[Draining](body)
	case kindFailed:
		m.Body, err = decode[Failed](body)
	case kindAccept:
		m.Body, err = decode[Accept](body)
	case kindRearm:
		m.Body, err = decode[Rearm](body)
	case kindDrain:
		m.Body, err = decode[Drain](body)
	case kindStop:
		m.Body, err = decode[Stop](body)
	case kindLogLevel:
		m.Body, err = decode[LogLevel](body)
	case kindPaused:
		m.Body, err = decode[Paused](body)
	case kindGather:
		m.Body, err = decode[Gather](body)
	case kindGathered:
		m.Body, err = decode[Gathered](body)
	case kindReadiness:
		m.Body, err = decode[Readiness](body)
	case kindHanded:
		m.Body, err = decode[Handed](body)
	case kindPeer:
		m.Body, err = decode[Peer](body)
	case kindPeerGone:
		m.Body, err = decode[PeerGone](body)
	case kindKept:
		m.Body, err = decode[Kept](body)
	case kindAdopt:
		m.Body, err = decode[Adopt](body)
	default:
		if flags&flagIgnorable == 0 {
			err = fmt.Errorf("link: message of unknown kind %d", k)
		}
	}
	if err != nil {
		return Message{}, err
	}
	return m, nil
}

func decode[T Body](b []byte) (Body, error) {
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("link: %s: %w", reflect.TypeFor[T]().Name(), err)
	}
	return v, nil
}
