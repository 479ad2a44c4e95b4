package keeper

import (
	"reflect"
	"strings"
	"testing"
)

const someMaps = `00400000-00452000 r-xp 00000000 08:02 173521                             /usr/bin/mainstay
00651000-00652000 r--p 00051000 08:02 173521                             /usr/bin/mainstay
00652000-00655000 rw-p 00052000 08:02 173521                             /usr/bin/mainstay
00e03000-00e24000 rw-p 00000000 00:00 0                                  [heap]
c000000000-c000400000 rw-p 00000000 00:00 0 
c000400000-c004000000 ---p 00000000 00:00 0 
7f2000000000-7f2000002000 rw-s 00000000 00:01 1024                       /memfd:page with spaces (deleted)
7f2000002000-7f2000003000 r--s 00000000 00:01 1024                       /memfd:page (deleted)
7ffd1c000000-7ffd1c021000 rw-p 00000000 00:00 0                          [stack]
7ffd1c0fe000-7ffd1c100000 r-xp 00000000 00:00 0                          [vdso]
`

func TestParseMaps(t *testing.T) {
	m, stack, err := parseMaps(someMaps)
	if err != nil {
		t.Fatal(err)
	}
	want := &memory{
		private: []span{{0x652000, 0x655000}, {0xe03000, 0xe24000}, {0xc000000000, 0xc000400000}},
		shared:  []span{{0x7f2000000000, 0x7f2000002000}},
	}
	if !reflect.DeepEqual(m, want) || stack != (span{0x7ffd1c000000, 0x7ffd1c021000}) {
		t.Errorf("got %+v, stack %+v; want %+v", m, stack, want)
	}
	for _, at := range []struct {
		address uintptr
		shared  bool
	}{{0x7f2000000000, true}, {0x7f2000001fff, true}, {0x7f2000002000, false}, {0xc000000000, false}, {0, false}} {
		if got := m.isShared(at.address); got != at.shared {
			t.Errorf("%#x shared: %v, want %v", at.address, got, at.shared)
		}
	}
}

func TestMapsThatAreNoneAreRefused(t *testing.T) {
	for _, text := range []string{"x", "00400000 rw-p 0 08:02 1", "0x-1 rw-p 0 08:02 1", "0-z rw-p 0 08:02 1", "0-1 rwp 0 08:02 1"} {
		if m, _, err := parseMaps(text); err == nil {
			t.Errorf("%q: got %+v, want an error", text, m)
		}
	}
}

const someStat = `7 (a (b) c) S 1 7 7 0 -1 4194560 100 0 0 0 0 0 0 0 20 0 5 0 100 1000 50 18446744073709551615 1 1 0 0 0 0 0 0 2143420159 0 0 0 17 0 0 0 0 0 0 0 0 0 140725603356656 140725603356700 140725603356700 140725603356720 0`

func TestParseArgs(t *testing.T) {
	tests := []struct {
		name string
		text string
		want span
		err  string
	}{
		{name: "a name with parentheses and spaces", text: someStat, want: span{140725603356656, 140725603356700}},
		{name: "too short", text: "7 (x) S 1 2 3", err: "fields after the name"},
		{name: "empty", text: "", err: "fields after the name"},
		{name: "no number", text: strings.Replace(someStat, "140725603356656", "x", 1), err: "arg_start"},
		{name: "no number at the end", text: strings.Replace(someStat, "140725603356700", "x", 1), err: "arg_end"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseArgs(tt.text)
			if tt.err == "" && (err != nil || got != tt.want) || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("got %+v, %v; want %+v, %q", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestMemoryOfThisProcessIsRead(t *testing.T) {
	m, err := readMemory()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.private) == 0 || m.args.start == 0 {
		t.Errorf("got %+v", m)
	}
	if len(m.private) > maxSpans {
		t.Errorf("%d mappings, a plan has room for %d", len(m.private), maxSpans)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(someMaps, someStat)
	f.Fuzz(func(t *testing.T, maps, stat string) {
		parseMaps(maps)
		parseArgs(stat)
	})
}
