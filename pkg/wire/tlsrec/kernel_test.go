package tlsrec

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"testing"
)

func TestKernelKeyIsAsInTheHeaderOfLinux(t *testing.T) {
	for _, tt := range []struct {
		name           string
		suite, cipher  uint16
		size           int // sizeof the struct
		iv, key, salt  int // offsets
		ivSize, keySiz int
	}{
		{"AES-128-GCM", tls.TLS_AES_128_GCM_SHA256, 51, 40, 4, 12, 28, 8, 16},
		{"AES-256-GCM", tls.TLS_AES_256_GCM_SHA384, 52, 56, 4, 12, 44, 8, 32},
		{"ChaCha20-Poly1305", tls.TLS_CHACHA20_POLY1305_SHA256, 54, 56, 4, 16, 48, 12, 32},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, server := newPair(t, tt.suite)
			server.out.seq = 0x0102030405060708
			key := server.AppendKernelKey(nil)
			if len(key) != tt.size || KernelKeySize(key) != tt.size {
				t.Fatalf("%d bytes, size %d, want %d", len(key), KernelKeySize(key), tt.size)
			}
			if v, c := binary.NativeEndian.Uint16(key), binary.NativeEndian.Uint16(key[2:]); v != 0x0304 || c != tt.cipher {
				t.Errorf("version %#x, cipher %d, want %d", v, c, tt.cipher)
			}
			salt := nonceSize - tt.ivSize
			k := server.out.keys
			for what, part := range map[string][2][]byte{
				"iv":     {key[tt.iv : tt.iv+tt.ivSize], k.iv[salt:]},
				"key":    {key[tt.key : tt.key+tt.keySiz], k.key[:tt.keySiz]},
				"salt":   {key[tt.salt : tt.salt+salt], k.iv[:salt]},
				"number": {key[tt.size-8:], {1, 2, 3, 4, 5, 6, 7, 8}},
			} {
				if !bytes.Equal(part[0], part[1]) {
					t.Errorf("%s is %x, want %x", what, part[0], part[1])
				}
			}
			if err := server.CheckKernelKey(key); err != nil {
				t.Error(err)
			}
			for _, at := range []int{3, 4, tt.size - 1} {
				other := bytes.Clone(key)
				other[at] ^= 1
				if server.CheckKernelKey(other) == nil {
					t.Errorf("another byte %d is taken for the same", at)
				}
			}
			if server.CheckKernelKey(key[:4]) == nil {
				t.Error("a part is taken for the whole")
			}
		})
	}
}

func TestSizeOfAKernelKeyIsThatOfASuite(t *testing.T) {
	if probe := AppendKernelProbe(nil); KernelKeySize(probe) != len(probe) {
		t.Errorf("probe of %d bytes, want %d", len(probe), KernelKeySize(probe))
	}
	for _, head := range [][2]uint16{{0x0303, kernelAES128}, {kernelVersion, 53}, {kernelVersion, 0}} {
		b := binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, head[0]), head[1])
		if n := KernelKeySize(b); n != 0 {
			t.Errorf("%v has %d bytes, want 0", head, n)
		}
	}
	if n := KernelKeySize(nil); n != 0 {
		t.Errorf("nothing has %d bytes, want 0", n)
	}
}

// handOver returns what seals as the kernel does that is told of c.
func handOver(t *testing.T, c *Conn) *half {
	t.Helper()
	h, err := newHalf(c.out.suite, c.out.keys.secret[:c.out.suite.secret], c.out.seq)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestWhatTheKernelSealsIsCounted(t *testing.T) {
	forEachSuite(t, func(t *testing.T, id uint16) {
		client, server := newPair(t, id)
		kernel := handOver(t, server)
		data := func(text string) {
			t.Helper()
			server.Sealed()
			got, _, err := openAll(client, kernel.seal(nil, typeApplicationData, []byte(text)))
			if err != nil || string(got) != text {
				t.Fatalf("got %q, %v, want %q", got, err, text)
			}
		}
		owed := func(bye bool, want RecordType) (err error) {
			t.Helper()
			typ, content := server.Owed(bye)
			if typ != want {
				t.Fatalf("owes a record of type %d, want %d", typ, want)
			}
			_, _, err = openAll(client, kernel.seal(nil, contentType(typ), content))
			if e := server.Told(typ); e != nil {
				t.Fatal(e)
			}
			return err
		}
		data("one")
		server.Sealed()
		server.Unsealed()
		data("two")
		if typ, _ := server.Owed(false); typ != 0 {
			t.Errorf("owes a record of type %d, want none", typ)
		}
		// The peer asks for a key.
		client.flags |= flagUpdateDue | flagAsk | flagAsked
		if _, _, err := openAll(server, client.AppendPending(nil)); err != nil {
			t.Fatal(err)
		}
		if err := owed(true, RecordKeyUpdate); err != nil {
			t.Fatal(err)
		}
		kernel = handOver(t, server)
		data("three")
		if err := server.CheckKernelKey(server.AppendKernelKey(nil)); err != nil {
			t.Error(err)
		}
		// And the key has protected enough.
		server.out.seq, client.in.seq = rekeyAt, rekeyAt
		kernel = handOver(t, server)
		if err := owed(false, RecordKeyUpdate); err != nil {
			t.Fatal(err)
		}
		kernel = handOver(t, server)
		data("four")
		_ = owed(true, RecordAlert)
		if !client.PeerClosed() {
			t.Error("close_notify has not come")
		}
		if typ, _ := server.Owed(true); typ != 0 {
			t.Errorf("owes a record of type %d after the end, want none", typ)
		}
	})
}

func TestKernelIsToldTheAlertOfAFault(t *testing.T) {
	_, server := newPair(t, tls.TLS_AES_128_GCM_SHA256)
	if _, _, err := server.Open([]byte{byte(typeHandshake), 3, 3, 0, 1, 0}); err == nil {
		t.Fatal("a record without protection was opened")
	}
	typ, content := server.Owed(true)
	if typ != RecordAlert || !bytes.Equal(content, []byte{2, byte(AlertUnexpectedMessage)}) {
		t.Errorf("owes type %d, %x", typ, content)
	}
	if err := server.Told(typ); err != nil {
		t.Fatal(err)
	}
	if typ, _ := server.Owed(true); typ != 0 {
		t.Errorf("owes a record of type %d after the alert, want none", typ)
	}
}
