// Command go-net is the echo server everybody writes first: package net, a
// goroutine a connection, a buffer of 4 KiB each.
//
//	go-net ADDRESS:PORT
//
// It runs on GOMAXPROCS threads and ends by SIGTERM.
package main

import (
	"fmt"
	"net"
	"os"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go-net ADDRESS:PORT")
		os.Exit(2)
	}
	l, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "go-net:", err)
		os.Exit(1)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "go-net:", err)
			os.Exit(1)
		}
		go echo(c)
	}
}

// echo writes back what it reads until the peer closes or the connection
// breaks.
func echo(c net.Conn) {
	defer c.Close()
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}
