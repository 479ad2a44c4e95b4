package reactor_test

import (
	"fmt"
	"log"
	"time"

	"github.com/mainstay-go/mainstay/pkg/reactor"
)

func ExampleLoop() {
	loop, err := reactor.New(reactor.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer loop.Close()

	loop.After(time.Millisecond, func() {
		fmt.Println("a millisecond later")
		loop.Stop()
	})
	if err := loop.Post(func() { fmt.Println("posted from anywhere") }); err != nil {
		log.Fatal(err)
	}
	if err := loop.Run(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// posted from anywhere
	// a millisecond later
}
