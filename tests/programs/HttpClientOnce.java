import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** HttpClientOnce URL: prints the page. */
class HttpClientOnce {
    public static void main(String[] words) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(words[0])).build();
        System.out.print(HttpClient.newHttpClient()
                .send(request, HttpResponse.BodyHandlers.ofString()).body());
    }
}
