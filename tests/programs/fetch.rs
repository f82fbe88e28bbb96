// fetch ADDRESS:PORT PATH: prints the answer.
use std::io::{Read, Write};
use std::net::TcpStream;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let mut stream = TcpStream::connect(&words[1]).unwrap();
    write!(stream, "GET {} HTTP/1.0\r\n\r\n", words[2]).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    print!("{}", answer);
}
