import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;

/** RegisteredEarly ADDRESS PORT PATH: the channel is in a selector before it connects. */
class RegisteredEarly {
    public static void main(String[] words) throws Exception {
        Selector selector = Selector.open();
        SocketChannel channel = SocketChannel.open();
        channel.configureBlocking(false);
        SelectionKey key = channel.register(selector, SelectionKey.OP_CONNECT);
        channel.connect(new InetSocketAddress(words[0], Integer.parseInt(words[1])));
        ByteBuffer room = ByteBuffer.allocate(65536);
        while (selector.select(20000) > 0) {
            selector.selectedKeys().clear();
            if (key.isConnectable() && channel.finishConnect()) {
                String request = "GET " + words[2] + " HTTP/1.0\r\n\r\n";
                channel.write(ByteBuffer.wrap(request.getBytes(StandardCharsets.US_ASCII)));
                key.interestOps(SelectionKey.OP_READ);
            } else if (channel.read(room) < 0) {
                break;
            }
        }
        System.out.print(new String(room.array(), 0, room.position(), StandardCharsets.US_ASCII));
    }
}
