package zookeepertest

import (
	"net"
	"sync"
	"testing"
)

// Proxy passes connections on to a server, and can stop passing on what goes one way or the other, without closing
// anything: what a network does that fails.
type Proxy struct {
	Address string
	target  string
	listen  net.Listener
	tasks   sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	cut    [2]bool
	healed chan struct{} // closed and replaced when something is healed
	closed bool
}

// The ways through a proxy.
const (
	ToServer = iota
	ToClient
)

// NewProxy starts a proxy before the server at target. It ends with the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{
		Address: l.Addr().String(), target: target, listen: l,
		conns: make(map[net.Conn]struct{}), healed: make(chan struct{}),
	}
	p.tasks.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// Cut stops what goes that way. The bytes wait.
func (p *Proxy) Cut(way int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut[way] = true
}

// Heal lets everything through again.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = [2]bool{}
	close(p.healed)
	p.healed = make(chan struct{})
}

// Drop closes the connections there are; new ones are taken.
func (p *Proxy) Drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listen.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		if !p.add(client, server) {
			return
		}
		p.tasks.Go(func() { p.pass(server, client, ToServer) })
		p.tasks.Go(func() { p.pass(client, server, ToClient) })
	}
}

// add notes two connections to close; false when that is now.
func (p *Proxy) add(both ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range both {
		if p.closed {
			_ = c.Close()
		} else {
			p.conns[c] = struct{}{}
		}
	}
	return !p.closed
}

// pass copies until one side ends, and then ends both.
func (p *Proxy) pass(to, from net.Conn, way int) {
	defer func() {
		_, _ = to.Close(), from.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, from)
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			p.wait(way)
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// wait returns when the way is not cut.
func (p *Proxy) wait(way int) {
	for {
		p.mu.Lock()
		cut, healed, closed := p.cut[way], p.healed, p.closed
		p.mu.Unlock()
		if !cut || closed {
			return
		}
		<-healed
	}
}

func (p *Proxy) close() {
	p.mu.Lock()
	p.closed = true
	close(p.healed)
	for c := range p.conns {
		_ = c.Close()
	}
	p.mu.Unlock()
	_ = p.listen.Close()
	p.tasks.Wait()
}
