package link

import (
	"encoding/binary"
	"testing"
)

// What was said in contract 1, to the byte: a worker of today that a supervisor
// of then starts, and a worker of then that a supervisor of today adopts.
const (
	identityOf1 = `{"contract":1,"service":"app","pool":"worker","slot":2,"incarnation":7,"generation":3,"epoch":4,"seat":5,"keeper":true,"listeners":[{"name":"echo","address":"tcp://127.0.0.1:7007"}]}`
	helloOf1    = "\x01\x00\x00\x00\x48\x00\x00\x00" + "\x04\x00\x00\x00\x00\x00\x00\x00" + "\x01\x00\x00\x00\x00\x00\x00\x00" +
		`{"contract":1,"incarnation":7,"generation":3,"build":"v0.9.0 (3f2c1ab)"}`
)

func TestWhatTheContractBeforeHasSaidIsUnderstood(t *testing.T) {
	id, err := ParseIdentity(identityOf1)
	if err != nil {
		t.Fatal(err)
	}
	if id.Contract != 1 || id.Slot != 2 || id.Incarnation != 7 || id.Control != "" || !id.Keeper || len(id.Listeners) != 1 {
		t.Errorf("%+v", id)
	}
	m, err := Decode([]byte(helloOf1))
	if err != nil {
		t.Fatal(err)
	}
	if h, ok := m.Body.(Hello); !ok || h.Contract != 1 || h.Incarnation != 7 || h.Build != "v0.9.0 (3f2c1ab)" || m.Epoch != 4 {
		t.Errorf("%+v", m)
	}
}

func TestFieldsThatAreNotKnownAreSkipped(t *testing.T) {
	const identity = `{"contract":2,"pool":"worker","incarnation":7,"generation":3,"epoch":4,"later":{"a":[1]}}`
	if id, err := ParseIdentity(identity); err != nil || id.Incarnation != 7 {
		t.Errorf("%+v, %v", id, err)
	}
	b, err := Encode(Message{Epoch: 4, Body: Drain{Hand: true}})
	if err != nil {
		t.Fatal(err)
	}
	body := append(b[headerSize:len(b)-1:len(b)-1], `,"later":{"a":[1]}}`...)
	b = append(b[:headerSize:headerSize], body...)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(body)))
	m, err := Decode(b)
	if d, ok := m.Body.(Drain); err != nil || !ok || d != (Drain{Hand: true}) {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestContractsFurtherAwayAreNotSpoken(t *testing.T) {
	for _, tt := range []struct {
		contract int
		want     bool
	}{{Contract, true}, {Contract - 1, true}, {Contract - 2, false}, {Contract + 1, false}, {0, Contract == 1}} {
		if got := Speaks(tt.contract); got != tt.want {
			t.Errorf("Speaks(%d) is %v", tt.contract, got)
		}
	}
}
