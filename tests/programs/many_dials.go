// many_dials URL COUNT: so many requests at once, each over a connection of its own.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
)

func main() {
	count, _ := strconv.Atoi(os.Args[2])
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var waiting sync.WaitGroup
	failed := make(chan error, count)
	for each := 0; each < count; each++ {
		waiting.Add(1)
		go func() {
			defer waiting.Done()
			answer, err := client.Get(os.Args[1])
			if err != nil {
				failed <- err
				return
			}
			io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
		}()
	}
	waiting.Wait()
	close(failed)
	for err := range failed {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	answer, err := client.Get(os.Args[1])
	if err != nil {
		os.Exit(1)
	}
	io.Copy(os.Stdout, answer.Body)
}
