package server

import "time"

// workerRest is how long a goroutine that ran a call waits for another.
const workerRest = time.Second

// beside runs job beside what else the connection is asked for, on a goroutine that has run one before where there is
// one: its stack has grown to what a call takes, and growing it anew is a fifteenth of a lease. There are never more of
// them than calls were in flight at a time, which enter bounds.
func (c *mcpConn) beside(job func()) {
	select {
	case c.jobs <- job:
	default:
		go c.work(job)
	}
}

func (c *mcpConn) work(job func()) {
	rest := time.NewTimer(workerRest)
	defer rest.Stop()
	for {
		job()
		rest.Reset(workerRest)
		select {
		case job = <-c.jobs:
		case <-rest.C:
			return
		case <-c.left:
			return
		}
	}
}
