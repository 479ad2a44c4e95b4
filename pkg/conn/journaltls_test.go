package conn

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/wire"
	"github.com/mainstay-go/mainstay/pkg/wire/tlsrec"
	"github.com/mainstay-go/mainstay/test/certs"
	"golang.org/x/sys/unix"
)

// recordClient is a client of TLS 1.3 whose records the test has in hand.
type recordClient struct {
	t   testing.TB
	nc  net.Conn
	tls *tlsrec.Conn
	in  []byte // that was not opened
}

func newRecordClient(t testing.TB, nc net.Conn, cfg *tls.Config) *recordClient {
	t.Helper()
	nc.SetDeadline(time.Now().Add(patience))
	h := tlsrec.Client(context.Background(), cfg)
	buf := make([]byte, 4096)
	for {
		done, err := h.Step()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Write(h.Output()); err != nil {
			t.Fatal(err)
		}
		if done {
			break
		}
		n, err := nc.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Feed(buf[:n]); err != nil {
			t.Fatal(err)
		}
	}
	r, err := h.Result()
	if err != nil {
		t.Fatal(err)
	}
	return &recordClient{t: t, nc: nc, tls: r.Conn, in: bytes.Clone(r.Rest)}
}

// seal returns the records of a message, after what is pending.
func (c *recordClient) seal(s string) []byte {
	c.t.Helper()
	b, err := c.tls.Seal(nil, []byte(s))
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

func (c *recordClient) write(b []byte) {
	c.t.Helper()
	if _, err := c.nc.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// expect reads until want has come.
func (c *recordClient) expect(want string) {
	c.t.Helper()
	c.nc.SetReadDeadline(time.Now().Add(patience))
	got, buf := "", make([]byte, 4096)
	for {
		n, plain, err := c.tls.OpenAll(c.in)
		got += string(plain)
		c.in = c.in[n:]
		if err != nil || len(got) >= len(want) {
			if got != want {
				c.t.Errorf("read %q, %v, want %q", got, err, want)
			}
			return
		}
		k, err := c.nc.Read(buf)
		if err != nil {
			c.t.Fatalf("read %q, then %v, want %q", got, err, want)
		}
		c.in = append(c.in, buf[:k]...)
	}
}

// update has the next record change the client's key, and ask for the
// server's.
func (c *recordClient) update() {
	c.t.Helper()
	state, err := c.tls.AppendState(nil)
	if err != nil {
		c.t.Fatal(err)
	}
	const due, ask, asked = 1 << 3, 1 << 4, 1 << 5 // see tlsrec
	state[1] |= due | ask | asked
	if c.tls, err = tlsrec.RestoreState(state); err != nil || !c.tls.Pending() {
		c.t.Fatalf("no update is pending: %v", err)
	}
}

// saving is for configs: what the application keeps is its name.
func saving(c *Config) {
	c.EncodeValue = func(c *Conn) ([]byte, error) { return fmt.Appendf(nil, "%v", c.Value()), nil }
	c.DecodeValue = func(c *Conn, b []byte) error {
		if b != nil {
			c.SetValue(string(b))
		}
		return nil
	}
}

// TestTLSConnectionThatRestsIsTakenUp has its process die four times, there
// and back, with the keys and numbers that are noted, and hands it over live
// in between.
func TestTLSConnectionThatRestsIsTakenUp(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		bothWays(t, func(t *testing.T, inline bool) {
			w := newTwo(t)
			a, b := w.configs(funcs{message: func(c *Conn, m []byte) {
				if v, ok := strings.CutPrefix(string(m), "save "); ok {
					c.SetValue(v)
					if err := c.Save(); err != nil {
						t.Error(err)
					}
				}
				if string(m) != "silent" {
					echo(t)(c, m)
				}
			}}, inline, func(c *Config) {
				secured(t, c).TLS.NextProtos = []string{"one", "two"}
				saving(c)
			})
			var nc net.Conn
			var c *Conn
			if network == "tcp" {
				nc, c = w.a.tcp(a)
			} else {
				nc, c = w.a.pair(a)
			}
			untilRest(t, w.a, c, true) // its handshake is to come
			cfg := clientTLS(tls.VersionTLS13)
			cfg.NextProtos = []string{"two"}
			client := newRecordClient(t, nc, cfg)
			rigs, cfgs := [2]*rig{w.a, w.b}, [2]*Config{a, b}
			untilRest(t, rigs[0], c, true) // nothing was said
			for i := range 6 {
				from, to := rigs[i%2], rigs[(i+1)%2]
				for n := range 3 {
					client.write(client.seal(fmt.Sprintf("line %d of %d\nagain\n", n, i)))
					client.expect(fmt.Sprintf("line %d of %d\nagain\n", n, i))
				}
				switch i {
				case 1:
					client.write(client.seal("silent\n"))
				case 2:
					client.write(client.seal("save what\n"))
					client.expect("save what\n")
				case 3, 4: // the client changes its key, and has the server change its
					client.update()
					client.write(client.seal("new keys\n"))
					client.expect("new keys\n")
					if i == 4 {
						client.write(client.seal("with them\n"))
						client.expect("with them\n")
					}
				}
				rx := c.BytesIn()
				from.until("it is read", func() bool { return c.BytesIn() >= rx })
				untilRest(t, from, c, true)
				before := c.TLS()
				other := &two{t: t, a: from, b: to}
				if i == 4 {
					c = other.move(c, cfgs[(i+1)%2])
				} else {
					c = other.dies(c, cfgs[(i+1)%2])
				}
				if cs := c.TLS(); cs.NegotiatedProtocol != "two" || cs.ServerName != "localhost" || cs.CipherSuite != before.CipherSuite {
					t.Errorf("it has come with %q for %q, suite %#x", cs.NegotiatedProtocol, cs.ServerName, cs.CipherSuite)
				}
				if i >= 2 && c.Value() != "what" {
					t.Errorf("it has come with %v", c.Value())
				}
			}
			client.write(client.seal("once more\n"))
			client.expect("once more\n")
			client.write(client.tls.CloseNotify(nil))
			w.a.until("it is closed", func() bool { return c.State() == Closed })
		})
	}
}

// TestTLSConnectionIsAtRestBetweenRecords takes the client's records apart.
func TestTLSConnectionIsAtRestBetweenRecords(t *testing.T) {
	r := newRig(t)
	cfg := secured(t, r.config(funcs{message: func(c *Conn, m []byte) {
		if string(m) == "much" {
			m = make([]byte, 7<<20)
		}
		echo(t)(c, m)
	}}, true))
	cfg.Limits.SendHard = 8 << 20
	nc, c := r.tcp(cfg)
	untilRest(t, r, c, true)
	h := hello(t)
	write(t, nc, h[:20])
	r.until("it is read", func() bool { return c.BytesIn() == 20 })
	untilRest(t, r, c, false)
	nc.Close()

	nc, c = r.tcp(cfg)
	client := newRecordClient(t, nc, clientTLS(tls.VersionTLS13))
	untilRest(t, r, c, true)
	for _, cut := range []int{1, 5, 20} {
		record := client.seal("message")
		rx := c.BytesIn()
		client.write(record[:cut])
		r.until("it is read", func() bool { return c.BytesIn() == rx+uint64(cut) })
		untilRest(t, r, c, false)
		client.write(record[cut:])
		client.expect("message")
		untilRest(t, r, c, true)
	}
	// A KeyUpdate of which the peer has sent half.
	client.update()
	update := client.tls.AppendPending(nil)
	client.write(update[:10])
	untilRest(t, r, c, false)
	client.write(update[10:])
	untilRest(t, r, c, true)
	client.write(client.seal("under the next key"))
	client.expect("under the next key")
	untilRest(t, r, c, true)
	// More than the kernel takes, of which a part is not sealed yet.
	client.write(client.seal("much"))
	r.until("the peer is behind", func() bool { return c.blocked })
	untilRest(t, r, c, false)
	client.expect(strings.Repeat("\x00", 7<<20))
	untilRest(t, r, c, true)
	client.write(client.tls.CloseNotify(nil))
	r.until("it is closed", func() bool { return c.State() == Closed })
}

func TestTLS12IsNeverAtRest(t *testing.T) {
	r := newRig(t)
	cfg := secured(t, r.config(funcs{message: echo(t)}, true))
	nc, c := r.tcp(cfg)
	client := handshaken(t, nc, clientTLS(tls.VersionTLS12))
	write(t, client, "hello")
	expect(t, client, "hello")
	r.do(func() {})
	untilRest(t, r, c, false)
	r.do(func() {
		if got := c.Info().Mortal; got != "TLS 1.2" {
			t.Errorf("it says %q", got)
		}
	})
}

// TestOpeningConnectionIsTakenUp has the process die before and after each
// step of opening that crypto/tls has no part in.
func TestOpeningConnectionIsTakenUp(t *testing.T) {
	const header = "PROXY TCP4 192.0.2.1 198.51.100.1 1000 443\r\n"
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %t", secure), func(t *testing.T) {
			w := newTwo(t)
			told := new(journal)
			a, b := w.configs(funcs{
				connect: func(c *Conn) { told.add("connect " + c.Peer()) },
				adopt:   func(c *Conn, why Reason) { told.add(why.String() + " " + c.Peer()) },
				message: echo(t),
			}, true, func(c *Config) {
				proxied(c)
				saving(c)
				if secure {
					secured(t, c)
				}
			})
			back := &two{t: t, a: w.b, b: w.a}
			nc, c := w.a.tcp(a)
			untilRest(t, w.a, c, true)
			c = w.dies(c, b)
			write(t, nc, header[:10])
			w.b.until("it is read", func() bool { return c.BytesIn() == 10 })
			untilRest(t, w.b, c, false)
			write(t, nc, header[10:])
			untilRest(t, w.b, c, true)
			c = back.dies(c, a)
			client := net.Conn(nc)
			want := "[connect 192.0.2.1:1000 crash 192.0.2.1:1000 crash 192.0.2.1:1000]"
			if secure {
				client = handshaken(t, nc, clientTLS(tls.VersionTLS13))
				want = "[connect 192.0.2.1:1000 crash 192.0.2.1:1000]"
			}
			write(t, client, "one\n")
			expect(t, client, "one\n")
			untilRest(t, w.a, c, true)
			c = w.dies(c, b)
			if h, ok := c.Proxy(); !ok || h.Destination.String() != "198.51.100.1:443" {
				t.Errorf("the header says %+v, %t", h, ok)
			}
			write(t, client, "two\n")
			expect(t, client, "two\n")
			if got := fmt.Sprint(told.all()); got != want {
				t.Errorf("callbacks %s, want %s", got, want)
			}
			untilRest(t, w.b, c, true)
			client.Close()
			w.b.until("it is closed", func() bool { return c.State() == Closed })
		})
	}
}

// TestLargeStateIsKeptToo has more to keep than a half of the slab holds, and
// then more than the slab does.
func TestLargeStateIsKeptToo(t *testing.T) {
	made, err := certs.Make(time.Hour, "client", strings.Repeat("long.", 20)+"example.com")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := made.Pair()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		chain  int // certificates
		mortal string
	}{
		{name: "in the annex", chain: 2},
		{name: "not at all", chain: 12, mortal: "its state is too large"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newTwo(t)
			a, b := w.configs(funcs{message: func(c *Conn, m []byte) {
				c.SetValue(strings.Repeat("v", MaxSaved))
				if err := c.Save(); err != nil {
					t.Error(err)
				}
				echo(t)(c, m)
			}}, true, func(c *Config) {
				secured(t, c).TLS.ClientAuth = tls.RequireAnyClientCert
				saving(c)
			})
			nc, c := w.a.tcp(a)
			cfg := clientTLS(tls.VersionTLS13)
			mine := pair
			for len(mine.Certificate) < tt.chain {
				mine.Certificate = append(mine.Certificate, pair.Certificate[0])
			}
			cfg.Certificates = []tls.Certificate{mine}
			client := handshaken(t, nc, cfg)
			write(t, client, "hello\n")
			expect(t, client, "hello\n")
			untilRest(t, w.a, c, tt.mortal == "")
			w.a.do(func() {
				if got := c.Info().Mortal; got != tt.mortal {
					t.Errorf("it says %q, want %q", got, tt.mortal)
				}
			})
			if tt.mortal != "" {
				return
			}
			back := &two{t: t, a: w.b, b: w.a}
			for range 2 {
				c = w.dies(c, b)
				if cs := c.TLS(); len(cs.PeerCertificates) != tt.chain || cs.PeerCertificates[1].Subject.CommonName != "client" {
					t.Errorf("it has come with %d certificates", len(cs.PeerCertificates))
				}
				write(t, client, "again\n")
				expect(t, client, "again\n")
				untilRest(t, w.b, c, true)
				c = back.dies(c, a)
				if c.Value() != strings.Repeat("v", MaxSaved) {
					t.Errorf("it has come with %v", c.Value())
				}
				untilRest(t, w.a, c, true)
			}
		})
	}
}

// TestKeysAreNowhereWhenTheyAreNotNeeded looks for them in the memory that all
// processes share.
func TestKeysAreNowhereWhenTheyAreNotNeeded(t *testing.T) {
	w := newTwo(t)
	a, b := w.configs(funcs{message: echo(t)}, true, func(c *Config) { secured(t, c) })
	nc, c := w.a.tcp(a)
	client := newRecordClient(t, nc, clientTLS(tls.VersionTLS13))
	table := w.a.set.alloc.Table()
	var st unix.Stat_t
	if err := unix.Fstat(table.FD(), &st); err != nil {
		t.Fatal(err)
	}
	// All secrets are in the client's, too.
	secrets := func() (all [][]byte) {
		keys := client.tls.AppendKeys(nil)
		n := len(keys) - tlsrec.MaxState + 2*48
		return [][]byte{keys[len(keys)-n : len(keys)-n/2], keys[len(keys)-n/2:]}
	}
	found := func(secrets [][]byte) (n int) {
		mem := make([]byte, st.Size)
		if _, err := unix.Pread(table.FD(), mem, 0); err != nil {
			t.Fatal(err)
		}
		for _, s := range secrets {
			n += bytes.Count(mem, s)
		}
		return n
	}
	client.write(client.seal("hello\n"))
	client.expect("hello\n")
	untilRest(t, w.a, c, true)
	first := secrets()
	if n := found(first); n != 2 {
		t.Errorf("the two secrets are there %d times", n)
	}
	client.update()
	client.write(client.seal("new keys\n"))
	client.expect("new keys\n")
	untilRest(t, w.a, c, true)
	second := secrets()
	if n := found(second); n != 2 {
		t.Errorf("the two secrets of after the update are there %d times", n)
	}
	c = w.dies(c, b)
	client.write(client.seal("hello\n"))
	client.expect("hello\n")
	untilRest(t, w.b, c, true)
	if n := found(second); n != 2 {
		t.Errorf("the two secrets are there %d times in the next process", n)
	}
	if n := found(first); n != 0 {
		t.Errorf("secrets of before the update are there %d times", n)
	}
	nc.Close()
	w.b.until("it is closed", func() bool { return c.State() == Closed })
	if n := found(second); n != 0 {
		t.Errorf("secrets of a connection that is over are there %d times", n)
	}
}

// TestRestingTellsNoKeys looks for them in what goes from process to process.
func TestRestingTellsNoKeys(t *testing.T) {
	w := newTwo(t)
	a, b := w.configs(funcs{message: echo(t)}, true, func(c *Config) { secured(t, c) })
	nc, c := w.a.tcp(a)
	client := newRecordClient(t, nc, clientTLS(tls.VersionTLS13))
	client.write(client.seal("hello\n"))
	client.expect("hello\n")
	untilRest(t, w.a, c, true)
	f := w.freeze(c)
	table := w.a.set.alloc.Table()
	body, err := Resting(nil, table, f.ID(), f.Row(), f.FD(), "test", w.a.loop.Clock())
	if err != nil {
		t.Fatal(err)
	}
	keys := client.tls.AppendKeys(nil)
	if at := len(keys) - 32; bytes.Contains(body, keys[at:at+16]) || bytes.Contains(body, keys[at+16:]) {
		t.Error("a secret is in the message")
	}
	// What the row says is not believed blindly.
	_, _, bits := f.Row().Published()
	slab, err := table.OwnSlab(f.ID(), partOf(bits))
	if err != nil {
		t.Fatal(err)
	}
	was := bytes.Clone(slab)
	for _, tt := range []struct {
		name   string
		damage func()
	}{
		{"no keys", func() { slab[slabKeysLen] = 0 }},
		{"too many", func() { slab[slabKeysLen] = slabKeys + 1 }},
		{"of a suite that is none", func() { clear(slab[slabHeader : slabHeader+slabKeys]) }},
	} {
		tt.damage()
		if ad, err := w.tryAdopt(f, b, body); err == nil {
			t.Errorf("%s: it is adopted", tt.name)
			ad.Drop()
		}
		copy(slab, was)
	}
	w.a.do(f.Thaw)
	client.write(client.seal("hello\n"))
	client.expect("hello\n")
}

// TestWhatIsSavedBeforeAMoveLeavesTheKeysAlone moves a connection out of the
// callback that has saved, and has the next process die.
func TestWhatIsSavedBeforeAMoveLeavesTheKeysAlone(t *testing.T) {
	w := newTwo(t)
	a, b := w.configs(funcs{message: func(c *Conn, m []byte) {
		c.SetValue(string(m))
		if err := c.Save(); err != nil {
			t.Error(err)
		}
		echo(t)(c, m)
	}}, true, func(c *Config) {
		secured(t, c).TLS.ClientAuth = tls.RequestClientCert
		saving(c)
	})
	nc, c := w.a.tcp(a)
	cfg := clientTLS(tls.VersionTLS13)
	cfg.Certificates = []tls.Certificate{certificate()} // which goes to the annex
	client := handshaken(t, nc, cfg)
	rigs, cfgs := [2]*rig{w.a, w.b}, [2]*Config{a, b}
	for i := range 4 {
		from, to := rigs[i%2], rigs[(i+1)%2]
		other := &two{t: t, a: from, b: to}
		m := fmt.Sprint("state ", i)
		write(t, client, m+"\n")
		expect(t, client, m+"\n")
		untilRest(t, from, c, true)
		from.do(func() {
			c.SetValue("late " + m)
			c.mu.Lock()
			c.extraLocked().saved = []byte("late " + m) // as Save leaves it
			if err := c.passSavedLocked(); err != nil {
				t.Error(err)
			}
			c.mu.Unlock()
		})
		untilRest(t, from, c, true)
		c = other.dies(c, cfgs[(i+1)%2])
		if c.Value() != "late "+m || len(c.TLS().PeerCertificates) != 1 {
			t.Errorf("it has come with %v and %d certificates", c.Value(), len(c.TLS().PeerCertificates))
		}
	}
	write(t, client, "end\n")
	expect(t, client, "end\n")
}

func TestSessionOverTLSThatRestsIsTakenUp(t *testing.T) {
	w := newTwo(t)
	a, b := w.configs(funcs{message: echo(t)}, true, func(c *Config) {
		c.Protocol = nil
		c.NewSession = func() wire.Session { return new(counting) }
		secured(t, c)
	})
	nc, c := w.a.tcp(a)
	untilRest(t, w.a, c, true)
	client := handshaken(t, nc, clientTLS(tls.VersionTLS13))
	write(t, client, "x\n")
	first := read(t, client)
	untilRest(t, w.a, c, true)
	c = w.dies(c, b)
	write(t, client, "x\n")
	if second := read(t, client); second == first {
		t.Errorf("the session has counted %q twice", first)
	}
	untilRest(t, w.b, c, true)
}

func TestOutgoingConnectionThatRestsIsTakenUp(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %t", secure), func(t *testing.T) { testOutgoingConnectionThatRests(t, secure) })
	}
}

func testOutgoingConnectionThatRests(t *testing.T, secure bool) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	told := new(journal)
	w, a, b, _, _ := dialTwo(t, funcs{
		message: func(c *Conn, m []byte) {
			c.SetValue(string(m))
			if string(m) == "save" {
				if err := c.Save(); err != nil {
					t.Error(err)
				}
			}
			echo(t)(c, m)
		},
		adopt: func(c *Conn, why Reason) { told.add(fmt.Sprint(why, " ", c.Value(), " ", c.Client().Address())) },
	}, true, func(c *DialConfig) {
		c.Reconnect = true
		saving(&c.Config)
		if secure {
			secured(t, &c.Config)
			c.TLS = &tls.Config{RootCAs: pool()}
		}
	})
	address := "tcp://" + l.Addr().String()
	if secure {
		address = named(address)
		l = tls.NewListener(l, serverTLS())
	}
	cl, err := a.Dial(address, nil)
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	if secure { // its handshake needs both
		if err := server.(*tls.Conn).Handshake(); err != nil {
			t.Fatal(err)
		}
	}
	w.a.until("it is connected", cl.Up)
	c := cl.Conn()
	rests := func(r *rig, c *Conn) {
		t.Helper()
		r.until("it is at rest", func() bool {
			n := NotedIn(c.row())
			return n.AtRest && n.Dialed && n.Read == c.BytesIn() && n.Written == c.BytesOut()
		})
	}
	rests(w.a, c)
	c = w.dies(c, b.Config())
	for _, line := range []string{"one\n", "save\n"} {
		write(t, server, line)
		expect(t, server, line)
	}
	rests(w.b, c)
	c = (&two{t: t, a: w.b, b: w.a}).dies(c, a.Config())
	write(t, server, "three\n")
	expect(t, server, "three\n")
	if got, want := fmt.Sprint(told.all()), fmt.Sprintf("[crash <nil> %s crash save %[1]s]", address); got != want {
		t.Errorf("OnAdopt was told %s, want %s", got, want)
	}
	// It is the client there, and connects anew.
	server.Close()
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	if secure {
		if err := server.(*tls.Conn).Handshake(); err != nil {
			t.Fatal(err)
		}
	}
	w.a.until("it is connected again", c.Client().Up)
	w.a.do(func() { c.Client().CloseNow(nil) })
}

func TestJournalOfTLSCostsNoAllocation(t *testing.T) {
	r := newRig(t)
	nc, c := r.tcp(secured(t, r.config(funcs{message: echo(t)}, true)))
	client := handshaken(t, nc, clientTLS(tls.VersionTLS13))
	write(t, client, "hello")
	expect(t, client, "hello")
	untilRest(t, r, c, true)
	var got float64
	r.do(func() { got = testing.AllocsPerRun(100, func() { c.rx.Add(1); c.note() }) })
	if got > 0 && !raceEnabled {
		t.Errorf("%v allocations, want none", got)
	}
}
