package conn_test

import (
	"fmt"
	"log"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/wire/text"
	"golang.org/x/sys/unix"
)

// repeater answers each line, and ends its loop with its connection.
type repeater struct {
	conn.NopHandler
	loop *reactor.Loop
}

func (r repeater) OnMessage(c *conn.Conn, m []byte) {
	if err := c.Send(fmt.Appendf(nil, "you said %q", m)); err != nil {
		log.Print(err)
	}
}

func (r repeater) OnClose(c *conn.Conn, why error) {
	fmt.Println(why)
	r.loop.Stop()
}

func Example() {
	loop, err := reactor.New(reactor.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer loop.Close()
	set := conn.NewSet(loop, nil)
	defer set.Close()

	// A worker takes descriptors from accept4(2); here one end of a pair will do.
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		log.Fatal(err)
	}
	defer unix.Close(fds[1])
	cfg := &conn.Config{Listener: "lines", Protocol: text.Protocol{}, Handler: repeater{loop: loop}, Inline: true}
	if _, err := set.Accepted(fds[0], nil, cfg); err != nil {
		log.Fatal(err)
	}

	if _, err := unix.Write(fds[1], []byte("hello\nworld\n")); err != nil {
		log.Fatal(err)
	}
	if err := unix.Shutdown(fds[1], unix.SHUT_WR); err != nil {
		log.Fatal(err)
	}
	if err := loop.Run(); err != nil {
		log.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := unix.Read(fds[1], buf)
	fmt.Printf("%s%v\n", buf[:n], err)
	// Output:
	// conn: closed by the peer
	// you said "hello"
	// you said "world"
	// <nil>
}
