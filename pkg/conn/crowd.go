package conn

// crowdPage is how many connections a page of a crowd has: 32 KiB, which is
// what it takes. The allocator rounds 4 KiB of pointers up to 4864 bytes.
const crowdPage = 4096

// crowd is the connections of a set, in no order. It grows and shrinks by pages: a slice
// of them all would leave, when it grows, as much garbage as it holds.
type crowd struct {
	pages []*[crowdPage]*Conn // one more than needed at most
	count int
}

// place is where the connection with that index stands.
func (w *crowd) place(index int) **Conn { return &w.pages[index/crowdPage][index%crowdPage] }

// at returns the connection with that index, of count.
func (w *crowd) at(index int) *Conn { return *w.place(index) }

// add takes c in, and tells it its index.
func (w *crowd) add(c *Conn) {
	if w.count == len(w.pages)*crowdPage {
		w.pages = append(w.pages, new([crowdPage]*Conn))
	}
	c.index = int32(w.count)
	w.count++
	*w.place(int(c.index)) = c
}

// remove forgets c; the last one takes its index.
func (w *crowd) remove(c *Conn) {
	w.count--
	last := w.place(w.count)
	*w.place(int(c.index)) = *last
	(*last).index = c.index
	*last = nil
	if spare := len(w.pages) - 1; spare*crowdPage >= w.count+crowdPage {
		w.pages[spare] = nil
		w.pages = w.pages[:spare]
	}
}
