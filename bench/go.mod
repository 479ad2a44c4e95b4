module github.com/mainstay-go/mainstay/bench

go 1.26.0

require (
	github.com/mainstay-go/mainstay v0.0.0-00010101000000-000000000000
	go.uber.org/goleak v1.3.0
	golang.org/x/sys v0.49.0
)

replace github.com/mainstay-go/mainstay => ../
