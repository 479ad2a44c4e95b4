package journal_test

import (
	"fmt"
	"os"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/journal"
)

func ExampleOpen() {
	level := zap.NewAtomicLevelAt(zap.InfoLevel)
	log, err := journal.Open(journal.Options{
		Format: "text", // "auto" is the journal, if stderr leads there
		Level:  &level, // can be changed at any time
		Fields: []zap.Field{zap.Int("worker", 3)},
		Stderr: os.Stderr,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	logger := log.Logger().Named("worker")
	logger.Debug("connection opened", zap.String("peer", "127.0.0.1:4711"))
	if err := log.Close(); err != nil {
		fmt.Println(err)
	}
	fmt.Println(log.Dropped(), "lines dropped")
	// Output: 0 lines dropped
}
