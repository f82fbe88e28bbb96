// asio_client ADDRESS PORT PATH: prints the answer. Boost.Asio puts a socket into its epoll when it
// opens it, before it connects.

#include <boost/asio.hpp>
#include <cstdlib>
#include <iostream>
#include <string>

using boost::asio::ip::tcp;

int main(int, char **words)
{
    boost::asio::io_context context;
    tcp::socket socket(context, tcp::v4());
    std::string request = "GET " + std::string(words[3]) + " HTTP/1.0\r\n\r\n", answer;
    auto address = boost::asio::ip::make_address(words[1]);
    bool failed = false;
    socket.async_connect({address, (unsigned short)std::atoi(words[2])}, [&](auto error) {
        failed = bool(error);
        if (failed)
            return;
        boost::asio::write(socket, boost::asio::buffer(request));
        boost::asio::async_read(socket, boost::asio::dynamic_buffer(answer), [](auto, auto) {});
    });
    context.run();
    std::cout << answer;
    return failed;
}
